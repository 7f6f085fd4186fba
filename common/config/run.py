"""`RunConfig`: all sections together, read from flat keys, tables and files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from nufed.common.config.data import DataConfig
from nufed.common.config.evaluation import EvaluationConfig
from nufed.common.config.federation import FederationConfig
from nufed.common.config.method import MethodConfig, has_listed_sizes
from nufed.common.config.model import ModelConfig
from nufed.common.config.parsing import explain, flatten, put
from nufed.common.config.privacy import PrivacyConfig
from nufed.common.config.section import Scalar, Section, descriptions, table_options, to_kebab
from nufed.common.config.task import TaskConfig
from nufed.common.errors import ConfigError
from nufed.common.json_text import parse_json, parse_toml, read_options_text

_DATA_OF_0_2 = {
    *("source", "partition", "dirichlet-alpha", "classes-per-client", "num-clients", "num-new-clients"),
    *("transform", "transform-strength", "test-fraction", "validation-fraction"),
}
"""What every complete table of data options holds."""


class RunConfig(Section):
    """Everything that decides a run's numbers."""

    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="label of the run folder: up to 64 letters, digits, . _ -"
    )
    seed: int = Field(0, ge=0, lt=2**62, description="seed of every random choice")
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    federation: FederationConfig = FederationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _learned_step_sizes_are_used(self) -> Self:
        if self.method.step_sizes != "fixed" and self.evaluation.adapt_lr:
            raise ValueError(
                f"evaluation.adapt-lr={self.evaluation.adapt_lr:g} contradicts method.step-sizes="
                f"{self.method.step_sizes}, whose sizes are used at test time too; leave adapt-lr at 0"
            )
        return self

    @model_validator(mode="after")
    def _client_state_is_of_rounds(self) -> Self:
        if self.method.client_state != "none" and self.federation.training == "local":
            raise ValueError(
                f"federation.training=local contradicts method.client-state={self.method.client_state}, which is what "
                "clients keep between rounds: there are none; leave client-state at none"
            )
        if self.method.client_state != "none" and self.federation.mode == "buffered":
            raise ValueError(
                f"federation.mode=buffered contradicts method.client-state={self.method.client_state}: a resumed run "
                "asks again who was at work, after they have kept what they did; leave mode at synchronous"
            )
        return self

    @model_validator(mode="after")
    def _listed_step_sizes_are_used(self) -> Self:
        if has_listed_sizes(self.method) and self.evaluation.adapt_lr:
            raise ValueError(
                f"evaluation.adapt-lr={self.evaluation.adapt_lr:g} contradicts method.inner-schedule="
                f"{self.method.inner_schedule}, whose sizes are used at test time too; leave adapt-lr at 0"
            )
        return self

    @model_validator(mode="after")
    def _everybodys_examples_are_here(self) -> Self:
        if self.evaluation.global_examples and self.data.source == "private":
            raise ValueError(
                f"evaluation.global-examples={self.evaluation.global_examples} contradicts data.source=private: other "
                "clients' test examples are at no client but in a simulation; leave global-examples at 0"
            )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Return the configuration that flat (`method.inner-lr`) or nested values describe.

        Raises:
            ConfigError: naming each key that is unknown or out of range, its value and what is allowed.
        """
        nested: dict[str, Any] = {}
        tables = table_options(cls)
        for key, value in values.items():
            put(nested, key, value, tables)
        _complete_as_before_scaling(nested)
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise ConfigError(explain(error, option_descriptions())) from error

    def flat(self) -> dict[str, Scalar]:
        """Return `{"seed": 0, "method.inner-lr": 0.1, …}`, as Flower carries it."""
        return dict(flatten(self.model_dump(by_alias=True)))

    def given(self) -> dict[str, Scalar]:
        """Return the flat keys and values that were given, and not left to their defaults."""
        return dict(flatten(self.model_dump(by_alias=True, exclude_unset=True)))

    def replace(self, **changes: Scalar) -> Self:
        """Return a copy with flat keys changed; `__` stands for `.` and `_` for `-`.

        Examples:
            >>> RunConfig().replace(method__num_inner_steps=5).method.num_inner_steps
            5
        """
        return self.updated({to_kebab(key.replace("__", ".")): value for key, value in changes.items()})

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with flat keys changed, e.g. `{"method.inner-lr": 0.05}`."""
        return self.parse({**self.given(), **changes})

    def to_json(self) -> str:
        """Return the complete configuration as indented JSON; `RunConfig.load` reads it back."""
        return json.dumps(self.model_dump(by_alias=True), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a configuration from a `.json` or `.toml` file, flat or nested; missing keys take their defaults."""
        try:
            text = read_options_text(Path(path))
        except OSError as error:
            raise ConfigError(
                f"Expected a configuration file at {path}, but it cannot be read ({error.strerror}). Check --config."
            ) from error
        except ValueError as error:
            raise ConfigError(f"Expected JSON or TOML in {path}, but {error}. Check --config.") from error
        try:
            values = parse_toml(text) if Path(path).suffix == ".toml" else parse_json(text)
        except ValueError as error:
            raise ConfigError(
                f"Expected JSON or TOML in {path}, but {error}. Fix that line, or use a run's config.json."
            ) from error
        if not isinstance(values, dict):
            raise ConfigError(
                f"Expected a table of options in {path}, but found {type(values).__name__}. See any run's config.json."
            )
        try:
            return cls.parse(values)
        except ConfigError as error:
            raise ConfigError(f"In {path}: {error}") from error


def _complete_as_before_scaling(nested: dict[str, Any]) -> None:
    """Set what NuFed 0.2 did in a complete configuration of its: run folders, models and servers scaled nothing."""
    data = nested.get("data")
    if isinstance(data, dict) and data.keys() >= _DATA_OF_0_2:
        for key in ("target-scale", "input-scale"):
            data.setdefault(key, "none")


def option_descriptions() -> dict[str, tuple[Scalar, str]]:
    """Return flat key -> (default, one-line description with the paper's symbol)."""
    return descriptions(RunConfig)
