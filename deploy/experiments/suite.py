"""What a suite is: methods, grids of equal size to tune them on, settings and seeds, from a TOML file.

Suites that come with NuFed are the files in `deploy/experiments/suites`; a path names one's own.
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nufed.common.config import RunConfig, Scalar, to_kebab
from nufed.common.errors import ConfigError, DataError, nearest_match_hint
from nufed.common.json_text import parse_toml, read_options_text
from nufed.common.methods import METHODS, find_method, preset_notes
from nufed.common.privacy.rules import check_attack

NAME = r"^[A-Za-z0-9._-]{1,64}$"
FIRST_TUNING_SEED = 1000
Options = dict[str, Scalar]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_kebab, validate_by_alias=True)


class Method(_Table):
    """A way of training.

    Attributes:
        name: used in tables.
        label: used in figures.
        preset: a key of `nufed.common.methods.METHODS`, whose options `options` win over; empty for none.
        options: run options that make the method.
        grid: values to tune on instead of the suite's; as many points, so that budgets stay equal.
        follows: a method whose chosen options, including the step size at test time, are taken over.
        scaled: options of the followed method to multiply, e.g. `{"method.inner-lr" = 5}` for (ν = 1, α' = 5 α).
    """

    name: str = Field(pattern=NAME)
    label: str = ""
    preset: str = ""
    options: Options = {}
    grid: dict[str, list[Scalar]] | None = None
    follows: str = ""
    scaled: dict[str, float] = {}


class Setting(_Table):
    """A variation of the problem that all methods are run on.

    Attributes:
        name: used in tables.
        strength: how heterogeneous the clients are; what H3 is judged along.
        smoothness: L of this setting where it is not the suite's; 0 for the suite's.
        options: run options that make the setting.
        attacks: name of an attack -> numbers of attackers; each makes one more setting, before this one.
        attack: the attack of such a setting, with `attackers` and `honest`, the name of the setting it was made of.
    """

    name: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$")
    strength: float = 0.0
    smoothness: float = Field(0.0, ge=0)
    options: Options = {}
    attacks: dict[str, list[Annotated[int, Field(ge=1)]]] = {}
    attack: str = ""
    attackers: int = Field(0, ge=0)
    honest: str = ""

    def spread(self) -> Iterator["Setting"]:
        """Yield a setting for each attack of this one, and then this one without them."""
        for attack, numbers in self.attacks.items():
            for number in numbers:
                name = f"{self.name}-{attack}-{number}".removeprefix("-")
                changes = {"name": name, "attack": attack, "attackers": number, "honest": self.name}
                yield self.model_copy(update={"attacks": {}, **changes})
        yield self.model_copy(update={"attacks": {}})


class Archive(_Table):
    """A file that the suite's data come from.

    Attributes:
        file: its name in the data folder.
        prepare: how a copy in the experiment's folder is made (`nufed.deploy.experiments.archive`), or `none`:
            `standardize-by-user` scales each user's features by that user's own training part and fills missing values
            with the user's own mean; `invert` inverts 8-bit pixels.
    """

    file: str
    prepare: Literal["none", "standardize-by-user", "invert"] = "none"


class Suite(_Table):
    """An experiment.

    Attributes:
        name: of the suite, and of the folder that it is run in.
        title: one line.
        about: what is compared, and what is not.
        seeds: of the final runs, 0 and up.
        tuning_seeds: of the runs that step sizes are chosen on, 1000 and up.
        tuning_rounds: rounds of these; 0 takes those of the final runs.
        target: absolute value of A(s*) (or of the loss) whose first round is reported; 0 for none.
        smoothness: L of the model and data where it is known, for ναL; 0 for unknown.
        reference: the method whose final A(s*) sets the relative targets, FedAvg + fine-tuning.
        baseline: the exact method of ν = 1.
        archive: a file that the data come from.
        options: run options of all methods.
        overrides: run options that win over those of settings and methods; what `--set` gives.
        grid: option -> values to tune on; empty for no tuning.
        settings: variations of the problem; the last one is the main one.
        methods: what is compared.
    """

    name: str = Field(pattern=NAME)
    title: str
    about: str = ""
    seeds: int = Field(5, ge=1, le=1000)
    tuning_seeds: int = Field(1, ge=1, le=1000)
    tuning_rounds: int = Field(0, ge=0)
    target: float = Field(0.0, ge=0)
    smoothness: float = Field(0.0, ge=0)
    reference: str = "fedavg"
    baseline: str = "per-fedavg"
    archive: Archive | None = None
    options: Options = {}
    overrides: Options = {}
    grid: dict[str, list[Scalar]] = {}
    settings: list[Setting] = [Setting(name="")]
    methods: list[Method] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known_and_budgets_equal(self) -> Self:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names) or len({each.name for each in self.settings}) < len(self.settings):
            raise ValueError("two methods or two settings have one name; rename one of them")
        leaders = [method.name for method in self.methods if not method.follows]
        for role, name in (("reference", self.reference), ("baseline", self.baseline)):
            if name not in names:
                raise ValueError(f"{role}={name!r} is no method of the suite.{nearest_match_hint(name, names)}")
        for method in self.methods:
            if method.follows and method.follows not in leaders:
                raise ValueError(
                    f"{method.name} follows {method.follows!r}.{nearest_match_hint(method.follows, leaders)}"
                )
            if method.preset and method.preset not in METHODS:
                raise ValueError(
                    f"{method.name} has preset {method.preset!r}.{nearest_match_hint(method.preset, METHODS)}"
                )
            if method.scaled and not method.follows:
                raise ValueError(f"{method.name} has scaled options but follows no method; say which")
            if not method.follows and num_points(self.grid) != num_points(grid := self.grid_of(method)):
                raise ValueError(
                    f"{method.name} is tuned on {num_points(grid)} points and the suite on {num_points(self.grid)}; "
                    "give all methods the same number"
                )
        return self

    def grid_of(self, method: Method) -> dict[str, list[Scalar]]:
        """Return option -> values that a method is tuned on; what it takes from another is not tuned again."""
        grid = self.grid if method.grid is None else method.grid
        taken = {*method.scaled, "method.inner-lr", "evaluation.adapt-lr"} if method.follows else set()
        return {key: values for key, values in grid.items() if key not in taken}

    @classmethod
    def load(cls, name_or_path: str) -> "Suite":
        """Read a suite of ours by its name, or a TOML file.

        Raises:
            ConfigError: it is unknown, cannot be read, or a key or value is refused.
        """
        try:
            values = parse_toml(_read(name_or_path))
        except ValueError as error:
            raise ConfigError(f"Expected TOML in suite {name_or_path}, but {error}. Fix that line.") from error
        return checked(values, name_or_path)

    def entries(self) -> list["Entry"]:
        """Return every method in every setting."""
        return [Entry(self, setting, method) for setting in self.settings for method in self.methods]


@dataclass(frozen=True)
class Entry:
    """One method in one setting of a suite."""

    suite: Suite
    setting: Setting
    method: Method

    @property
    def key(self) -> str:
        """Return a name that no other entry of the suite has, e.g. `meta-5` or `meta-5@half`."""
        return f"{self.method.name}@{self.setting.name}" if self.setting.name else self.method.name

    @property
    def followed(self) -> str:
        """Return the key of the entry that this one follows; empty if it follows none."""
        if not self.method.follows:
            return ""
        return f"{self.method.follows}@{self.setting.name}" if self.setting.name else self.method.follows

    @property
    def attack(self) -> tuple[str, int] | None:
        """Return name and number of attackers; None without an attack."""
        return (self.setting.attack, self.setting.attackers) if self.setting.attack else None

    def points(self) -> list[Options]:
        """Return the grid points that this entry is tuned on; one without options if it is not tuned."""
        return list(grid_points(self.suite.grid_of(self.method)))

    def config(self, point: Mapping[str, Scalar], followed: RunConfig | None = None) -> RunConfig:
        """Return the run's configuration at a grid point, seed 0.

        Args:
            point: options of the grid point.
            followed: the chosen configuration of the followed method.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        options: Options = {"name": self.suite.name, **self.suite.options, **self.setting.options}
        if self.method.preset:
            options |= find_method(self.method.preset).options()
        options |= self.method.options
        if followed is not None:
            theirs = followed.flat()
            options |= {"evaluation.adapt-lr": followed.evaluation.adapt_lr or followed.method.inner_lr}
            options |= {key: float(theirs[key]) * factor for key, factor in self.method.scaled.items()}
        return RunConfig.parse({**options, **point, **self.suite.overrides})

    def notes(self) -> list[str]:
        """Return what must be told of a preset between the suite's options and what was typed over them.

        What the suite's own file changes about a preset is its author's, who names it as they please.
        """
        if not self.method.preset:
            return []
        below = {**self.suite.options, **self.setting.options}
        return preset_notes(self.method.preset, below, self.config(self.points()[0]), typed=self.suite.overrides)


def checked(values: Mapping[str, Any], origin: str) -> Suite:
    """Return the suite that values describe, after every run option in it was tried.

    Args:
        values: as in a suite's file.
        origin: for messages: which suite it is.

    Raises:
        ConfigError: a key or value is refused.
    """
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(to_kebab(str(part)) for part in problem["loc"]) or "suite"
        reason = problem["msg"].removeprefix("Value error, ").removesuffix(".")
        raise ConfigError(f"In suite {origin}: {key}: {reason}. Correct it.") from error
    settings = [each for setting in suite.settings for each in setting.spread()]
    suite = suite.model_copy(update={"settings": settings})
    for setting in settings:
        if setting.attack:
            _check_attack(setting, suite)
    for entry in suite.entries():
        for point in entry.points():
            entry.config(point)
    return suite


def _check_attack(setting: Setting, suite: Suite) -> None:
    from nufed.deploy.simulation.attacks import known_attack

    for method in suite.methods:
        entry = Entry(suite, setting, method)
        config = entry.config(entry.points()[0])
        known_attack(setting.attack, setting.attackers, config)
        check_attack(config, setting.attack)


def suite_names() -> list[str]:
    """Return the names of the suites that come with NuFed."""
    return sorted(file.name.removesuffix(".toml") for file in _shelf().iterdir() if file.name.endswith(".toml"))


def num_points(grid: Mapping[str, list[Scalar]]) -> int:
    """Return how many points a grid has; one if it has no options."""
    return math.prod(len(values) for values in grid.values())


def grid_points(grid: Mapping[str, list[Scalar]]) -> Iterator[Options]:
    """Yield the points of a grid, the last option changing fastest."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def find_archive(file: str, data_root: Path | None) -> Path:
    """Return a suite's file in the data folder or in the folder above it, relative to here if that is possible.

    Raises:
        DataError: it is in neither.
    """
    folders = [data_root, data_root.parent] if data_root else []
    for folder in folders:
        if (folder / file).is_file():
            return Path(os.path.relpath(folder / file))
    where = " or ".join(str(folder) for folder in folders) or "a data folder, but none was given"
    raise DataError(f"expected {file} in {where}; give the folder that holds it with --data-root DIR")


def _shelf() -> Any:
    return resources.files("nufed.deploy.experiments") / "suites"


def _read(name_or_path: str) -> str:
    path = Path(name_or_path)
    if path.suffix == ".toml":
        try:
            return read_options_text(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Expected a suite in {path}, but it cannot be read ({error}). Check the path."
            ) from error
    if name_or_path not in suite_names():
        hint = nearest_match_hint(name_or_path, suite_names())
        raise ConfigError(f"Unknown suite {name_or_path!r}.{hint} Your own: a path that ends in .toml.")
    return str((_shelf() / f"{name_or_path}.toml").read_text(encoding="utf-8"))
