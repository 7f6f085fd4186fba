"""Options that several commands share, declared once: a command names the group, typer sees its options.

@with_option_groups
def simulate(run: RunOptions, machine: MachineOptions) -> None: ...
"""

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self, get_type_hints, runtime_checkable

import typer

from nufed.common.errors import ConfigError

if TYPE_CHECKING:
    from nufed.deploy.simulation.engine_options import EngineOptions


@runtime_checkable
class OptionGroup(Protocol):
    """Options that are read together into one record."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return the group's options as keyword-only parameters that typer understands."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Return the record that the parsed values, by parameter name, make up."""


class DeclaredOptions:
    """An option group that is a dataclass whose fields are annotated as typer's parameters are; a base for such ones.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Where(DeclaredOptions):
        ...     listen: Annotated[str, typer.Option(help="address")] = "0.0.0.0:9092"
        >>> [parameter.default for parameter in Where.parameters()]
        ['0.0.0.0:9092']
    """

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return the fields as parameters; one without a default is a required option."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                each.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if each.default is MISSING else each.default,
                annotation=hints[each.name],
            )
            for each in fields(cls)  # type: ignore[arg-type]
        ]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """Return the record."""
        return cls(**values)


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` for typer, each parameter annotated with an option group replaced by the group's options."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, tuple[type[OptionGroup], list[inspect.Parameter]]] = {}
    own: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, OptionGroup):
            groups[parameter.name] = parameter.annotation, parameter.annotation.parameters()
        else:
            own.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def parsed(**values: Any) -> None:
        _check_finite(values)
        records = {}
        for name, (group, members) in groups.items():
            records[name] = group.from_values({member.name: values.pop(member.name) for member in members})
        command(**records, **values)

    shown = [*(member for _, members in groups.values() for member in members), *own]
    parsed.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return parsed


def _check_finite(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are none: they lie in every range, as comparisons with NaN go.

    Raises:
        ConfigError: naming the option.
    """
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            flag = name.removeprefix("constant_").replace("_", "-")
            raise ConfigError(f"--{flag}={value:g} is no number to reckon with. Give a finite one, or leave it out.")


def option(name: str, annotation: Any, default: Any, declared: Any) -> inspect.Parameter:
    """Return one parameter of a group; `declared` is a `typer.Option(...)`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[annotation, declared])


def beginning_with(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what a shell's completion asks for the `names` that begin with what was typed."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


def engine_names() -> Iterable[str]:
    """Return the names for --engine; those who ask for nothing do not import what runs a federation."""
    from nufed.deploy.simulation.engines import ENGINES

    return ENGINES


def attack_names() -> Iterable[str]:
    """Return the names for --attack."""
    from nufed.deploy.simulation.attacks import ATTACKS

    return ATTACKS


@dataclass(frozen=True)
class AttackOptions(DeclaredOptions):
    """Who attacks a simulated federation, and how; both or neither is given."""

    attack: Annotated[
        str | None,
        typer.Option(
            help="have some clients attack, to see what federation.aggregation stands: sign-flip, scaled, label-flip, "
            "alie or inner-product",
            metavar="NAME",
            rich_help_panel="Attack",
            autocompletion=beginning_with(attack_names),
        ),
    ] = None
    attackers: Annotated[
        int | None,
        typer.Option(help="participating clients that attack", metavar="INTEGER", min=1, rich_help_panel="Attack"),
    ] = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "AttackOptions":
        """Return the options.

        Raises:
            ConfigError: one of them is given alone.
        """
        if (values["attack"] is None) != (values["attackers"] is None):
            raise ConfigError("Expected --attack NAME and --attackers NUMBER together. Give both, or neither.")
        return cls(**values)

    @property
    def chosen(self) -> tuple[str, int] | None:
        """Name and number of attackers; None without an attack."""
        return (self.attack, self.attackers) if self.attack and self.attackers else None


@dataclass(frozen=True)
class EngineFlags(DeclaredOptions):
    """How an engine spreads clients over machines, processors and GPUs."""

    ray_address: Annotated[
        str | None,
        typer.Option(
            help="which Ray --engine ray uses: local (started on this machine alone), auto (the cluster that this "
            "machine is a node of), HOST:PORT or ray://HOST:PORT (default: local)",
            metavar="ADDRESS",
            rich_help_panel="Machine",
        ),
    ] = None
    ray_resources: Annotated[
        str | None,
        typer.Option(
            help="resources of Ray's nodes that each client takes, as JSON, e.g. '{\"accelerator\": 1}'",
            metavar="JSON",
            rich_help_panel="Machine",
        ),
    ] = None
    cpus_per_client: Annotated[
        float | None,
        typer.Option(
            help="processors that each client counts as in --engine processes and ray (default: --threads)",
            metavar="NUMBER",
            rich_help_panel="Machine",
        ),
    ] = None
    gpus_per_client: Annotated[
        float | None,
        typer.Option(
            help="part of a GPU that each client is given in --engine processes and ray, e.g. 0.25 (default: none)",
            metavar="NUMBER",
            rich_help_panel="Machine",
        ),
    ] = None
    clients_per_actor: Annotated[
        int | None,
        typer.Option(
            help="clients that each process of --engine processes and ray computes at once, as --engine cohort does "
            "(default: 1)",
            metavar="INTEGER",
            rich_help_panel="Machine",
        ),
    ] = None

    @property
    def chosen(self) -> "EngineOptions":
        """What the engine is told."""
        from nufed.deploy.simulation.engine_options import EngineOptions, ray_resources

        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "ray_resources"}
        set_options = {name: value for name, value in given.items() if value is not None}
        return EngineOptions(ray_resources=ray_resources(self.ray_resources), **set_options)


@dataclass(frozen=True)
class MachineOptions:
    """What depends on the machine and never on the numbers; None leaves it to the environment (`NUFED_*`).

    Attributes:
        data_root: folder of torchvision data sets.
        download: whether torchvision may download what is missing.
        device: cpu, cuda or cuda:N.
        threads: threads of torch in each process.
        frozen: file or folder that the frozen part of the run's model is read from.
    """

    data_root: Path | None = None
    download: bool = False
    device: str | None = None
    threads: int | None = None
    frozen: Path | None = None

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return --data-root, --download, --device, --threads and --frozen."""

        def declare(flag: str, text: str, **rest: Any) -> Any:
            return typer.Option(flag, help=text, rich_help_panel="Machine", **rest)

        data_root = declare("--data-root", "folder of torchvision data sets", metavar="DIR")
        threads = declare("--threads", "threads of torch in each process (default: 1)", min=1, max=1024)
        return [
            option("data_root", Path | None, None, data_root),
            option("download", bool, False, declare("--download", "let torchvision download what is missing")),
            option(
                "device", str | None, None, declare("--device", "cpu, cuda or cuda:N (default: cpu)", metavar="NAME")
            ),
            option("threads", int | None, None, threads),
            option(
                "frozen",
                Path | None,
                None,
                declare("--frozen", "file or folder to read the frozen part of the model from", metavar="PATH"),
            ),
        ]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> "MachineOptions":
        """Return the machine's options.

        Raises:
            ConfigError: the device does not exist here.
        """
        if values["device"] is not None:
            check_device(values["device"])
        return cls(**values)

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Put the options into the environment inside the block, where this process and those it starts read them.

        Raises:
            ConfigError: a variable of the environment is refused, or names a device that does not exist here.
        """
        given = {
            "NUFED_DATA_ROOT": self.data_root,
            "NUFED_DEVICE": self.device,
            "NUFED_NUM_THREADS": self.threads,
            "NUFED_FROZEN": self.frozen,
        }
        values = {name: str(value) for name, value in given.items() if value is not None}
        if self.download:
            values["NUFED_DOWNLOAD"] = "true"
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            _check_environment()
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _check_environment() -> None:
    from nufed.common.settings import process_settings

    if (device := process_settings().device) != "cpu":
        check_device(device, "NUFED_DEVICE")


def check_device(name: str, origin: str = "--device") -> None:
    """Refuse a device that torch does not know or that this machine lacks.

    Args:
        name: of the device.
        origin: where the name comes from.

    Raises:
        ConfigError: with what there is.
    """
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name not in known:
        raise ConfigError(f"{origin}={name!r} is not on this machine. Choose one of: {', '.join(known)}.")
