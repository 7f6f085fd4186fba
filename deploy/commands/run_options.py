"""From what was typed to a `RunConfig`: defaults, then --config, then --method, then flags, then --set."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import typer

from nufed.common.config import RunConfig, Scalar, option_descriptions, to_kebab
from nufed.common.errors import ConfigError
from nufed.common.methods import METHODS, find_method, preset_notes
from nufed.deploy.commands.option_groups import beginning_with, option

FLAGS = {
    "name": "name",
    "seed": "seed",
    "dataset": "data.source",
    "partition": "data.partition",
    "clients": "data.num-clients",
    "new-clients": "data.num-new-clients",
    "model": "model.name",
    "init": "model.init",
    "inner-steps": "method.num-inner-steps",
    "inner-lr": "method.inner-lr",
    "estimator": "method.estimator",
    "local-steps": "method.num-local-steps",
    "local-lr": "method.local-lr",
    "batch-size": "method.batch-size",
    "rounds": "federation.num-rounds",
    "fraction": "federation.participation-fraction",
    "weighting": "federation.weighting",
    "dp": "privacy.dp",
    "dp-clip": "privacy.clip",
    "dp-noise": "privacy.noise",
    "dp-epsilon": "privacy.epsilon",
    "dp-delta": "privacy.delta",
    "publish": "privacy.publish",
    "secure-aggregation": "privacy.secure-aggregation",
    "adapt-steps": "evaluation.num-adapt-steps",
}

_PANELS = {
    "data": "Data and clients",
    "task": "Task",
    "model": "Model",
    "method": "Method",
    "federation": "Rounds",
    "privacy": "Privacy",
    "evaluation": "Evaluation",
}
_LOW = {"minimum": "{}", "exclusiveMinimum": "above {}"}
_HIGH = {"maximum": " to {}", "exclusiveMaximum": " to below {}"}
_LISTED_BY = {"data.source": "datasets", "model.name": "models", "method.estimator": "estimators"}
_METAVARS = {int: "INTEGER", float: "NUMBER", str: "NAME"}


@dataclass(frozen=True)
class RunOptions:
    """What was typed about a run's numbers, not yet judged.

    Attributes:
        config_file: of --config; None without it.
        method: of --method; None without it.
        flags: flag -> value as typed, e.g. `{"inner-lr": "0.1"}`.
        assignments: of --set, `key=value` each.
    """

    config_file: Path | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    assignments: Sequence[str] = ()
    method: str | None = None

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return --method, the flags of `FLAGS`, --config and --set; values stay as typed: one place judges them."""
        config = typer.Option("--config", help="JSON or TOML file of options, e.g. a run's config.json", metavar="FILE")
        assignment = typer.Option(
            "--set",
            help="any option, e.g. method.hessian-batch-size=40; `nufed options` lists them",
            metavar="KEY=VALUE",
            autocompletion=complete_assignment,
        )
        method = typer.Option(
            "--method",
            help=f"preset below the other flags: {', '.join(METHODS)}; `nufed methods` says what they are",
            metavar="NAME",
            rich_help_panel=_PANELS["method"],
            autocompletion=beginning_with(lambda: METHODS),
        )
        return [
            option("method", str | None, None, method),
            *(_flag_parameter(flag, key) for flag, key in FLAGS.items()),
            option("config", Path | None, None, config),
            option("assignments", list[str] | None, None, assignment),
        ]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "RunOptions":
        """Return what was typed."""
        flags = {flag: values[flag.replace("-", "_")] for flag in FLAGS}
        given = {
            flag: str(value).lower() if isinstance(value, bool) else value
            for flag, value in flags.items()
            if value is not None
        }
        return cls(values["config"], given, tuple(values["assignments"] or ()), values["method"])

    def resolve(self, base: RunConfig | None = None) -> RunConfig:
        """Return the run's configuration; see `resolve_with_notes`."""
        return self.resolve_with_notes(base)[0]

    def resolve_with_notes(self, base: RunConfig | None = None) -> tuple[RunConfig, list[str]]:
        """Return the run's configuration and what its user must be told of the preset's place in it.

        Later ones win: `base` or defaults, --config, --method, flags, --set.

        Raises:
            ConfigError: a method or option is unknown, a value is out of range, a file cannot be read, or a flag and
                --set disagree.
        """
        config = RunConfig.load(self.config_file) if self.config_file else base or RunConfig()
        preset = {} if self.method is None else find_method(self.method).options()
        changes = self.changes()
        try:
            resolved = config.updated({**preset, **changes})
        except ConfigError as error:
            raise ConfigError(self._in_flags(str(error))) from error
        if self.method is None:
            return resolved, []
        return resolved, preset_notes(self.method, config.given(), resolved, typed=changes)

    def changes(self) -> dict[str, str]:
        """Return flat key -> value as typed, from flags and --set.

        Raises:
            ConfigError: an assignment is no assignment, or the same key is given two different values.
        """
        changes: dict[str, str] = {}
        origins: dict[str, str] = {}
        typed = [(FLAGS[flag], value, f"--{flag} {value}") for flag, value in self.flags.items()]
        for key, value, origin in [*typed, *map(_parse_assignment, self.assignments)]:
            if key in changes and not _same(changes[key], value):
                raise ConfigError(f"{origins[key]} contradicts {origin}: both give {key}. Leave one of them out.")
            changes[key], origins[key] = value, origin
        return changes

    def _in_flags(self, message: str) -> str:
        """Return the message with the flags that were typed named beside their keys."""
        for flag in self.flags:
            shown = f"--{flag}" if flag == FLAGS[flag] else f"--{flag} ({FLAGS[flag]})"
            message = message.replace(f"{FLAGS[flag]}=", f"{shown}=")
        return message


def config_for_resuming(stored: RunConfig, options: RunOptions) -> RunConfig:
    """Return the stored configuration with the changes that a resumed run may have: more rounds, or another ε.

    The budget of client-level differential privacy is that of the whole run, whose ledger goes on.

    Raises:
        ConfigError: another option is changed.
    """
    config = options.resolve(stored)
    before, after = stored.flat(), config.flat()
    allowed = {"federation.num-rounds": "--rounds"}
    if config.privacy.dp == "client":
        allowed["privacy.epsilon"] = "--dp-epsilon"
    changed = [key for key, value in after.items() if value != before[key] and key not in allowed]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{key}={after[key]!r} contradicts the run to resume, which has {key}={before[key]!r}. "
            f"Only {' and '.join(allowed.values())} may change: leave the option out, or start a new run without "
            "--resume."
        )
    return config


def allowed_values(key: str) -> str:
    """Return what a key's value may be, e.g. `1 to 1000`, as the configuration's own schema has it; empty for text."""
    declared = _declared(key)
    if "enum" in declared:
        return ", ".join(declared["enum"])
    if key in _LISTED_BY:
        return f"see `nufed {_LISTED_BY[key]}`"
    low = next((text.format(_exactly(declared[k])) for k, text in _LOW.items() if k in declared), "")
    high = next((text.format(_exactly(declared[k])) for k, text in _HIGH.items() if k in declared), "")
    return f"{low}{high}" if low and high else ""


def _exactly(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


def known_values(key: str) -> list[str]:
    """Return the names that a key's value may be, for completion in a shell; empty for numbers and text."""
    if key == "data.source":
        from nufed.common.data import SOURCES

        return [f"{name}:" if source.argument else name for name, source in SOURCES.items()]
    if key == "model.name":
        from nufed.common.models import MODELS

        return [f"{name}:" if spec.argument else name for name, spec in MODELS.items()]
    if key == "method.estimator":
        from nufed.common.meta.estimators import ESTIMATORS

        return list(ESTIMATORS)
    if key == "federation.aggregation":
        from nufed.strategy.aggregation import AGGREGATION_RULES

        return list(AGGREGATION_RULES)
    return list(_declared(key).get("enum", ()))


def complete_assignment(typed: str) -> list[str]:
    """Return what `--set` can go on with: keys, and behind an equals sign the key's values."""
    key, equals, value = typed.partition("=")
    if not equals:
        return [f"{known}=" for known in option_descriptions() if known.startswith(key)]
    if key not in option_descriptions():
        return []
    return [f"{key}={known}" for known in known_values(key) if known.startswith(value)]


def _declared(key: str) -> Mapping[str, Any]:
    """Return what the configuration's schema says of a key."""
    section, _, name = key.rpartition(".")
    table = _schema()["$defs"][f"{section.capitalize()}Config"] if section else _schema()
    declared: Mapping[str, Any] = table["properties"][name]
    return declared


@cache
def _schema() -> dict[str, Any]:
    return RunConfig.model_json_schema(by_alias=True)


def _flag_parameter(flag: str, key: str) -> inspect.Parameter:
    default, description = option_descriptions()[key]
    allowed = allowed_values(key)
    declared = typer.Option(
        f"--{flag}",
        help=f"{description} ({allowed}{'; ' if allowed else ''}default: {'empty' if default == '' else default})",
        metavar=_METAVARS.get(type(default)),  # a switch takes no value
        rich_help_panel=_PANELS.get(key.partition(".")[0], "Run"),
        show_default=False,
        autocompletion=beginning_with(lambda: known_values(key)),
    )
    return option(flag.replace("-", "_"), bool | None if isinstance(default, bool) else str | None, None, declared)


def _parse_assignment(assignment: str) -> tuple[str, str, str]:
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {assignment!r} is no assignment; expected KEY=VALUE, e.g. --set method.inner-lr=0.05. "
            "`nufed options` lists the keys."
        )
    return to_kebab(key.strip()), value.strip(), f"--set {assignment}"


def _same(one: Scalar, other: Scalar) -> bool:
    if one == other:
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False
