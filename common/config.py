"""What decides a run's numbers: `RunConfig`, declared once, parsed once, frozen.

Flower carries it as flat kebab-case keys (`method.inner-lr`), TOML as tables, Python as attributes
(`config.method.inner_lr`); one alias generator stands between them. Defaults live here, and
`[tool.flwr.app.config]` in pyproject.toml repeats them because Flower refuses to override a key
that is not declared there (a test keeps the two equal).

What depends on the machine (folders, device, threads) is in `nufed.common.settings`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.method_rules import method_contradiction

Scalar = bool | int | float | str


def to_kebab(name: str) -> str:
    """Return the wire and TOML spelling of a Python field name."""
    return name.replace("_", "-")


class _Section(BaseModel):
    """Frozen, strict about unknown keys, kebab-case outside and snake_case inside."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_kebab,
        validate_by_name=True,
        validate_by_alias=True,
        allow_inf_nan=False,
    )


class DataConfig(_Section):
    """Where the examples come from and how they are dealt to clients."""

    source: str = Field(
        "digits", description="name of a data source, npz:PATH, python:module:function, or private: each client's own"
    )
    partition: Literal["iid", "dirichlet", "classes", "by-user", "per-fedavg"] = Field(
        "classes",
        description="how examples are dealt; sources that are federations by nature always use by-user",
    )
    dirichlet_alpha: float = Field(0.3, gt=0, le=1e6, description="Dirichlet concentration; small is heterogeneous")
    classes_per_client: int = Field(
        2, ge=1, le=10_000, description="classes that each client holds (partition classes)"
    )
    num_clients: int = Field(20, ge=1, le=1_000_000, description="participating clients, n")
    num_new_clients: int = Field(10, ge=0, le=1_000_000, description="clients that never take part in training")
    transform: Literal["none", "rotate", "permute-labels", "two-groups"] = Field(
        "none", description="what each client sees its examples through, drawn for each client"
    )
    transform_strength: float = Field(
        1.0, ge=0, le=1, description="how far transforms differ between clients: of ±180 degrees, or of the classes"
    )
    test_fraction: float = Field(0.25, gt=0, lt=1, description="share of each client's data kept for the test")
    validation_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of each client's remaining data kept for validation"
    )
    task: Literal["classification", "regression"] = Field(
        "classification", description="what the clients' own data are for (source private)"
    )
    input_shape: str = Field(
        "",
        pattern=r"^([1-9]\d{0,6}(,[1-9]\d{0,6})*)?$",
        description="shape of one input, e.g. 13 or 1,28,28 (source private); empty counts feature-names",
    )
    num_outputs: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="classes or predicted values (source private); 0 counts class-names, or is 1",
    )
    class_names: str = Field("", description="names of the classes in label order, comma-separated (source private)")
    feature_names: str = Field("", description="columns that are the inputs, in order (source private)")
    categories: str = Field(
        "", description="columns to encode one-hot, e.g. sex:f|m;thal:3|6|7, with their values (source private)"
    )
    feature_means: str = Field(
        "", description="mean of each column of feature-names without categories, for scaling (source private)"
    )
    feature_scales: str = Field(
        "", description="standard deviation of each such column; given with feature-means (source private)"
    )


class ModelConfig(_Section):
    """The model that is trained."""

    name: str = Field("mlp", description="name of a model, or module:function")
    hidden_sizes: str = Field(
        "80,60", pattern=r"^(\d+(,\d+)*)?$", description="widths of the hidden layers, comma-separated"
    )
    activation: Literal["elu", "tanh", "gelu", "silu", "softplus", "relu"] = Field("elu", description="nonlinearity")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropping a unit; 0 turns it off")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of parameters and inputs")


class MethodConfig(_Section):
    """The objective and the clients' local training."""

    num_inner_steps: int = Field(
        3, ge=0, le=1000, description="ν, fine-tuning steps inside the objective; 0 is FedAvg, 1 Per-FedAvg"
    )
    inner_lr: float = Field(0.05, ge=0, le=1e3, description="α, step size of a fine-tuning step")
    estimator: str = Field("exact", description="how the meta-gradient is computed")
    objective: Literal["fine-tuned", "moreau"] = Field(
        "fine-tuned", description="loss after ν fine-tuning steps, or Moreau envelope solved in ν steps (pFedMe)"
    )
    step_sizes: Literal["fixed", "learned"] = Field(
        "fixed", description="fine-tuning steps of size inner-lr, or of a learned size for each parameter (Meta-SGD)"
    )
    adapted_part: Literal["all", "head"] = Field(
        "all", description="what fine-tuning changes, also at test time: all parameters, or the last layer's"
    )
    trained_part: Literal["all", "body"] = Field(
        "all", description="what meta steps change: all parameters, or all but the last layer's"
    )
    proximal_strength: float = Field(
        0.0, ge=0, le=1e6, description="μ, pull of meta steps towards the server's model (FedProx); 0 turns it off"
    )
    personal_strength: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="λ, pull towards the server's model at test time (Ditto), and in the Moreau envelope; 0 is off",
    )
    num_local_steps: int = Field(5, ge=1, le=100_000, description="τ, meta steps on a client in one round")
    local_lr: float = Field(0.1, gt=0, le=1e3, description="β, step size of a meta step")
    max_grad_norm: float = Field(
        0.0, ge=0, le=1e9, description="norm that longer meta-gradients are scaled down to; 0 leaves them as they are"
    )
    batch_size: int = Field(20, ge=0, le=1_000_000, description="D, examples in an inner batch; 0 takes all of them")
    outer_batch_size: int = Field(
        -1, ge=-1, le=1_000_000, description="D', examples in the outer batch; -1 is batch-size, 0 all"
    )
    hessian_batch_size: int = Field(
        -1, ge=-1, le=1_000_000, description="D'', examples in a Hessian batch; -1 is batch-size, 0 all"
    )
    hessian_batches: Literal["fresh", "inner"] = Field(
        "fresh", description="fresh draws them independently (the theory); inner reuses the inner batches"
    )
    outer_holdout_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the support split kept for outer batches alone; 0 draws both from all of it",
    )
    hessian_free_delta: float = Field(
        0.0, ge=0, le=10, description="size of the displacement; 0 takes the measured default"
    )
    hessian_free_displacement: Literal["normalized", "absolute", "relative"] = Field(
        "normalized",
        description="displace by δ v/‖v‖, by δ v as Per-FedAvg does, or by δ (1 + ‖w‖) v/‖v‖",
    )
    hessian_free_difference: Literal["central", "forward"] = Field(
        "central", description="both sides of the point, or one side: fewer gradients, larger error"
    )
    hessian_free_dtype: Literal["same", "float64"] = Field(
        "same", description="precision of hessian-free: the model's, or float64 whatever the model's"
    )
    memory: Literal["low", "fast", "auto"] = Field(
        "auto",
        description="graphs of inner steps kept for coupled batches: one, all, or (unrolled) what fits in 256 MiB",
    )
    compile: Literal["off", "on", "auto"] = Field(
        "off", description="compile the inner step: equal to rounding only; auto where it saves more than it costs"
    )

    @model_validator(mode="after")
    def _coupled_batches_have_one_size(self) -> Self:
        if self.hessian_batches == "inner" and self.hessian_batch_size not in (-1, self.batch_size):
            raise ValueError(
                "hessian-batch-size contradicts hessian-batches=inner, which reuses the inner batches; "
                "leave hessian-batch-size at -1"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_the_method_agree(self) -> Self:
        if problem := method_contradiction(self):
            raise ValueError(problem)
        return self


class FederationConfig(_Section):
    """Rounds, participation and weighting."""

    num_rounds: int = Field(60, ge=0, le=10_000_000, description="K, server updates")
    participation_fraction: float = Field(
        0.5, gt=0, le=1, description="r, share of the participating clients asked in a round"
    )
    weighting: Literal["uniform", "examples"] = Field("uniform", description="weights in the mean over clients")
    aggregation: Literal["mean", "none"] = Field(
        "mean", description="none has no rounds: each client trains alone for as many steps (local-only)"
    )
    server_lr: float = Field(
        1.0, gt=0, le=100, description="ε, how far a round moves the model towards the mean; 1 all the way"
    )
    round_timeout: float = Field(3600.0, gt=0, le=1e6, description="seconds to wait for the replies of a phase")


class EvaluationConfig(_Section):
    """Adaptation curves: fine-tune the server model on the support split, judge it on the test split."""

    num_adapt_steps: int = Field(10, ge=0, le=10_000, description="S, steps of the adaptation curve")
    adapt_lr: float = Field(0.0, ge=0, le=1e3, description="step size at test time; 0 is inner-lr")
    adapt_batch_size: int = Field(
        0, ge=0, le=1_000_000, description="examples in a step at test time; 0 takes all of the support split"
    )
    primary_step: int = Field(5, ge=0, le=10_000, description="s*, the step that single numbers are quoted at")
    interval: int = Field(
        10, ge=0, le=10_000_000, description="rounds between evaluations; 0 evaluates at the end only"
    )
    target_accuracy: float = Field(
        0.0, ge=0, le=1, description="accuracy at s* whose first round is reported; 0 reports none"
    )

    @model_validator(mode="after")
    def _primary_step_is_on_the_curve(self) -> Self:
        if self.primary_step > self.num_adapt_steps:
            raise ValueError(
                f"primary-step={self.primary_step} lies beyond the curve, which ends at "
                f"num-adapt-steps={self.num_adapt_steps}; raise num-adapt-steps or lower primary-step"
            )
        return self


class RunConfig(_Section):
    """Everything that decides a run's numbers."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="label of the run folder")
    seed: int = Field(0, ge=0, lt=2**62, description="seed of every random choice")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    federation: FederationConfig = FederationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _learned_step_sizes_are_used(self) -> Self:
        if self.method.step_sizes == "learned" and self.evaluation.adapt_lr:
            raise ValueError(
                f"evaluation.adapt-lr={self.evaluation.adapt_lr:g} contradicts method.step-sizes=learned, whose sizes "
                "are used at test time too; leave adapt-lr at 0"
            )
        return self

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Return the configuration that flat (`method.inner-lr`) or nested values describe.

        Raises:
            ConfigError: naming each key that is unknown or out of range, its value and what is allowed.
        """
        nested: dict[str, Any] = {}
        for key, value in values.items():
            _put(nested, key, value)
        try:
            return cls.model_validate(nested)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from error

    def flat(self) -> dict[str, Scalar]:
        """Return `{"seed": 0, "method.inner-lr": 0.1, …}`, as Flower carries it."""
        return dict(_flatten(self.model_dump(by_alias=True)))

    def replace(self, **changes: Scalar) -> "RunConfig":
        """Return a copy with flat keys changed; `__` stands for `.` and `_` for `-`.

        Example:
            >>> RunConfig().replace(method__num_inner_steps=5).method.num_inner_steps
            5
        """
        return self.updated({to_kebab(key.replace("__", ".")): value for key, value in changes.items()})

    def updated(self, changes: Mapping[str, Any]) -> "RunConfig":
        """Return a copy with flat keys changed, e.g. `{"method.inner-lr": 0.05}`."""
        return self.parse({**self.flat(), **changes})

    def to_json(self) -> str:
        """Return the complete configuration as indented JSON; `RunConfig.load` reads it back."""
        return json.dumps(self.model_dump(by_alias=True), indent=2) + "\n"

    @classmethod
    def load(cls, path: Path) -> "RunConfig":
        """Read a configuration from a `.json` or `.toml` file, flat or nested; missing keys take their defaults."""
        import tomllib

        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"Expected a configuration file at {path}, but it cannot be read ({error.strerror}). Check --config."
            ) from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"Expected JSON or TOML in {path}, but it is not UTF-8 text ({error.reason}). Check --config."
            ) from error
        try:
            values = tomllib.loads(text) if Path(path).suffix == ".toml" else json.loads(text)
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


def option_descriptions() -> dict[str, tuple[Scalar, str]]:
    """Return flat key -> (default, one-line description with the paper's symbol)."""
    result: dict[str, tuple[Scalar, str]] = {}
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.default, _Section):
            for inner, declared in type(field.default).model_fields.items():
                result[f"{to_kebab(name)}.{to_kebab(inner)}"] = (declared.default, declared.description or "")
        else:
            result[to_kebab(name)] = (field.default, field.description or "")
    return result


def _put(nested: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in a nested dict, copying tables so that the caller's are not changed."""
    head, _, rest = key.partition(".")
    head = to_kebab(head)
    if rest:
        table = nested.setdefault(head, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{key!r} needs a table at {head!r}, but {head!r} is {table!r}. Give one of the two.")
        _put(table, rest, value)
    elif isinstance(value, Mapping):
        for inner, inner_value in value.items():
            _put(nested, f"{head}.{inner}", inner_value)
    else:
        nested[head] = value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _explain(error: ValidationError) -> str:
    """Return one sentence per wrong key: the key, what came, what is allowed."""
    known = option_descriptions()
    lines = []
    for problem in error.errors():
        key = ".".join(to_kebab(str(part)) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            table = dict(_flatten(problem["input"], f"{key}.")) if isinstance(problem["input"], Mapping) else [key]
            lines += [f"Unknown option {full!r}.{nearest_match_hint(full, known)}" for full in table]
            lines.append("`nufed options` lists all.")
        elif problem["type"] == "value_error":
            lines.append(f"{key or 'options'}: {problem['msg'].removeprefix('Value error, ')}.")
        elif problem["type"] == "model_type":
            example = next(option for option in known if option.startswith(f"{key}."))
            lines.append(f"{key}={problem['input']!r} is refused: {key} is a table. Set one of its options: {example}.")
        else:
            reason = problem["msg"][0].lower() + problem["msg"][1:]
            described = f" It is: {known[key][1]}." if key in known else ""
            lines.append(f"{key}={problem['input']!r} is refused: {reason}.{_nearest_choice(problem)}{described}")
    return " ".join(lines)


def _nearest_choice(problem: ErrorDetails) -> str:
    """Return ` Did you mean 'x'?` where one of a few names is expected and one is near."""
    if problem["type"] != "literal_error":
        return ""
    names = re.findall("'([^']+)'", problem["ctx"]["expected"])
    close = get_close_matches(str(problem["input"]), names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
