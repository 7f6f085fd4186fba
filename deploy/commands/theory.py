"""`nufed theory`: step sizes and the convergence bound for several ν, from given or from measured constants."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.method_rules import other_objectives
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import MachineOptions, option, with_option_groups
from nufed.deploy.commands.run_options import RunOptions
from nufed.deploy.commands.tables import fits, print_table
from nufed.deploy.commands.terminal import stdout_console

if TYPE_CHECKING:  # torch, which these need, takes seconds to import: other commands do without
    from nufed.common.examples import Batch
    from nufed.common.params import Params
    from nufed.common.settings import Settings
    from nufed.common.task import LossFn
    from nufed.common.theory.advice import Advice, Row
    from nufed.common.theory.constants import Constants, MetaStep
    from nufed.common.theory.convergence import RunShape
    from nufed.common.theory.estimate import Estimate
    from nufed.common.theory.trial_steps import TrialClient

_CONSTANTS = {
    "L": "bound of the Hessians' norm",
    "rho": "ρ, Lipschitz constant of the Hessians",
    "B": "bound of gradients after adaptation",
    "sigma-g": "σ_G, noise of one example's gradient (default: 0)",
    "sigma-h": "σ_H, noise of one example's Hessian (default: 0)",
    "gamma-g": "γ_G, heterogeneity of the clients' gradients (default: 0)",
    "gamma-h": "γ_H, heterogeneity of the clients' Hessians (default: 0)",
    "kappa": "κ, Lipschitz constant of the third derivatives (default: unknown)",
    "mu": "μ, smallest eigenvalue of any Hessian; 0 for convex losses (default: unknown)",
}
_NARROWEST_MEANING = 12
_REQUIRED = ("L", "rho", "B")


@dataclass(frozen=True)
class ConstantOptions:
    """Constants as typed; empty where they are to be measured.

    Attributes:
        given: option -> value.
    """

    given: dict[str, float]

    @classmethod
    def parameters(cls) -> list[Any]:
        """Return one option for each constant."""
        panel = "Constants (without them they are measured on the data and model)"
        return [
            option(
                f"constant_{name.replace('-', '_')}",
                float | None,
                None,
                typer.Option(f"--{name}", help=text, rich_help_panel=panel, show_default=False),
            )
            for name, text in _CONSTANTS.items()
        ]

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> "ConstantOptions":
        """Return what was typed."""
        typed = {name: values[f"constant_{name.replace('-', '_')}"] for name in _CONSTANTS}
        return cls({name: value for name, value in typed.items() if value is not None})

    def constants(self) -> "Constants | None":
        """Return the constants, or None where none was given.

        Raises:
            ConfigError: some of L, ρ, B are missing, or a constant is impossible.
        """
        from nufed.common.theory.constants import Constants

        if not self.given:
            return None
        if missing := [f"--{name}" for name in _REQUIRED if name not in self.given]:
            raise ConfigError(
                f"Expected --L, --rho and --B together, but {', '.join(missing)} is missing. "
                "Give all three, or no constant at all to have them measured."
            )
        return Constants(**{name.replace("-", "_"): value for name, value in self.given.items()})


def register(app: typer.Typer) -> None:
    """Add the command `theory`."""
    app.command("theory")(with_option_groups(theory))


def theory(  # noqa: PLR0913 - typer reads the options from the parameters
    run: RunOptions,
    machine: MachineOptions,
    constants: ConstantOptions,
    inner_steps_list: Annotated[
        str, typer.Option("--nu", help="numbers of inner steps to compare, comma-separated", metavar="LIST")
    ] = "0,1,2,5,10",
    initial_gap: Annotated[
        float | None,
        typer.Option("--initial-gap", help="F(w_0) - inf F (default: 1, or the measured loss)", show_default=False),
    ] = None,
    measure_clients: Annotated[
        int, typer.Option("--measure-clients", min=1, help="participating clients that constants are measured on")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Say which step sizes the convergence theory covers for each ν, what binds them, and what the bound is.

    With --L, --rho and --B it computes from these; otherwise it measures all constants at the initial model and along
    inner paths from it (local estimates: lower bounds of the true suprema). --inner-lr judges that α; without it one
    is recommended for each ν.
    """
    from nufed.common.settings import process_settings
    from nufed.common.theory.advice import recommend
    from nufed.common.theory.constants import MetaStep
    from nufed.common.theory.estimate import Estimate

    nus = _parse_nus(inner_steps_list)
    config, notes = run.resolve_with_notes()
    _refuse_other_objectives(config)
    given = constants.constants()
    _refuse_both(run, given)
    inner_lr = config.method.inner_lr if "method.inner-lr" in run.changes() else None
    source: Constants | Estimate
    problem: _Problem | None = None
    if given is None:
        with machine.exported(), while_working("measuring the constants"):
            problem = _loaded(config, measure_clients, process_settings())
            source, gap = _measure(config, max(nus), problem)
    else:
        source, gap = given, 1.0
    shape = _shape(config, gap if initial_gap is None else initial_gap)
    step = MetaStep.from_config(config.method, default_delta=1e-3 if config.model.dtype == "float32" else 1e-5)
    advice = recommend(source, nus, step, shape, inner_lr)
    if problem is not None and isinstance(source, Estimate):
        with machine.exported(), while_working("trying step sizes"):
            is_given = inner_lr is not None
            advice = [_tried(entry, source, problem, (step, shape), is_given=is_given) for entry in advice]
    if as_json:
        typer.echo(json.dumps(_as_json(source, advice), indent=2, ensure_ascii=False))
    else:
        for note in notes:
            typer.echo(note)
        _print(source, advice)


def _refuse_other_objectives(config: RunConfig) -> None:
    others = other_objectives(config)
    found, plain = config.flat(), RunConfig().flat()
    unknown = ("method.max-grad-norm", "method.inner-schedule", "method.local-optimizer", "federation.server-optimizer")
    others += [f"{key}={found[key]}" for key in unknown if found[key] != plain[key]]
    if others:
        raise ConfigError(
            f"Expected a method that minimizes the loss after ν plain fine-tuning steps, but {', '.join(others)} is "
            "another one, which the theory does not cover. Choose fedavg, per-fedavg or meta-fedavg-N."
        )


def _parse_nus(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) <= 1000 for part in parts):
        raise ConfigError(f"--nu={text!r} is refused: expected whole numbers from 0 to 1000. Give for example 1,2,5.")
    return [int(part) for part in parts]


def _refuse_both(run: RunOptions, given: "Constants | None") -> None:
    data_options = [key for key in run.changes() if key.startswith(("data.", "model."))]
    data_options = [key for key in data_options if key not in ("data.num-clients", "model.dtype")]
    if given is not None and data_options:
        raise ConfigError(
            f"{data_options[0]} contradicts the given constants: they are either given or measured on data. "
            "Leave out one of the two."
        )


def _shape(config: RunConfig, gap: float) -> "RunShape":
    from nufed.common.theory.convergence import RunShape

    clients = config.data.num_clients
    return RunShape(
        initial_gap=gap,
        local_lr=config.method.local_lr,
        num_local_steps=config.method.num_local_steps,
        num_rounds=max(1, config.federation.num_rounds),
        num_clients=clients,
        num_chosen=max(1, round(config.federation.participation_fraction * clients)),
    )


@dataclass(frozen=True)
class _Problem:
    """What constants are measured on, and step sizes tried: loss, initial model, clients, and the run's options."""

    loss: "LossFn"
    params: "Params"
    clients: "list[TrialClient]"
    config: RunConfig

    @property
    def batches(self) -> "list[Batch]":
        """Return each client's support split."""
        return [client.support.as_batch() for client in self.clients]


def _loaded(config: RunConfig, num_clients: int, settings: "Settings") -> _Problem:
    """Return the problem, with dropout off: the constants are those of the loss that an adapted model is judged by."""
    import torch

    from nufed.common.data import load_federation
    from nufed.common.models import build_model
    from nufed.common.params import model_params
    from nufed.common.rng import numpy_generator
    from nufed.common.task import make_loss
    from nufed.common.tasks.options import with_loss_options
    from nufed.common.tasks.weights import weighted
    from nufed.common.theory.trial_steps import TrialClient

    torch.set_num_threads(settings.num_threads)
    dtype = torch.float64 if config.model.dtype == "float64" else torch.float32
    federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=settings)
    participating = [client for client in federation.clients if client.group == "participating"]
    order = numpy_generator(config.seed, "theory", "clients").permutation(len(participating))[:num_clients]
    task = with_loss_options(federation.task, config.task)
    model = build_model(config.model, task, seed=config.seed).eval().to(settings.device)
    clients = []
    for client in (participating[i] for i in sorted(order)):
        support = weighted(client.support, task).to(settings.device)
        judged = weighted(client.validation, task).to(settings.device) if len(client.validation) else support
        clients.append(TrialClient(client.client_id, support, judged))
    return _Problem(make_loss(model, task), model_params(model), clients, config)


def _measure(config: RunConfig, num_inner_steps: int, problem: _Problem) -> "tuple[Estimate, float]":
    """Return constants at the initial model and the clients' mean loss there, an upper bound of Δ_F for losses >= 0."""
    import torch

    from nufed.common.theory.estimate import estimate_constants
    from nufed.common.theory.measure import Probe

    probe = Probe(seed=config.seed, num_inner_steps=num_inner_steps, inner_lr=config.method.inner_lr)
    estimate = estimate_constants(problem.loss, [problem.params], problem.batches, probe)
    with torch.no_grad():
        mean_loss = float(torch.stack([problem.loss(problem.params, batch) for batch in problem.batches]).mean())
    return estimate, mean_loss


def _tried(
    advice: "Advice", source: "Estimate", problem: _Problem, how: "tuple[MetaStep, RunShape]", *, is_given: bool
) -> "Advice":
    """Return the advice with B after steps of the α that is advised, and with the α and β of short training."""
    from nufed.common.errors import ModelError
    from nufed.common.params import norm
    from nufed.common.theory.advice import recommend, with_trial
    from nufed.common.theory.estimate import gradient_after
    from nufed.common.theory.measure import Probe
    from nufed.common.theory.trial_steps import Trial, meta_gradient, trial_steps

    config, (step, shape) = problem.config, how
    nu, alpha = advice.num_inner_steps, advice.inner_lr
    probe = Probe(seed=config.seed, num_inner_steps=nu, inner_lr=alpha)
    method = config.method.model_copy(update={"num_inner_steps": nu})
    s_star = config.evaluation.primary_step
    trial = Trial(problem.loss, problem.params, problem.clients, shape.num_chosen, method, s_star, config.seed)
    try:
        largest = gradient_after(problem.loss, problem.params, problem.batches, probe)
        steepness = norm(meta_gradient(problem.loss, problem.params, problem.batches, nu, alpha)[1]) ** 2
        found = trial_steps(trial, alpha, is_given=is_given)
    except ModelError:
        remark = f"Fine-tuning diverges from the initial model with α = {alpha:.3g}: neither this nor the theory helps."
        return dataclasses.replace(advice, remarks=(remark, *advice.remarks), is_vacuous=True)
    constants = dataclasses.replace(source.constants, B=largest)
    (again,) = recommend(constants, [nu], step, shape, alpha)
    return with_trial(dataclasses.replace(again, inner_lr_reason=advice.inner_lr_reason), found, steepness)


def _as_json(source: "Constants | Estimate", advice: "list[Advice]") -> dict[str, Any]:
    from nufed.common.theory.advice import describe
    from nufed.common.theory.estimate import Estimate

    record = dataclasses.asdict(source)
    return {
        "constants": record["constants"] if isinstance(source, Estimate) else record,
        "measured": isinstance(source, Estimate),
        "measurement": {key: value for key, value in record.items() if key != "constants"}
        if isinstance(source, Estimate)
        else None,
        "rows": [dataclasses.asdict(row) for row in describe(advice)],
        "advice": [dataclasses.asdict(entry) for entry in advice],
    }


def _print(source: "Constants | Estimate", advice: "list[Advice]") -> None:
    from nufed.common.theory.advice import describe

    console = stdout_console()
    for line in _explain_source(source):
        console.print(line, highlight=False)
    rows, nus = describe(advice), [entry.num_inner_steps for entry in advice]
    spare = max(len(row.meaning) for row in rows) - _NARROWEST_MEANING
    if fits(table := _table(rows, nus), console, spare=spare):
        console.print(table)
    else:
        cells = [(row.symbol, row.meaning, *(f"{value:.3g}" for value in row.values)) for row in rows]
        print_table(console, ("", "", *(f"ν = {nu}" for nu in nus)), cells, right=len(nus))
    for entry in advice:
        console.print(
            f"[bold]ν = {entry.num_inner_steps}[/bold]  {entry.inner_lr_reason}. {entry.local_lr_reason}. "
            f"{' '.join(entry.remarks)}",
            highlight=False,
        )
    console.print(
        "These are bounds: they say which way each quantity acts, and cover step sizes smaller than what training "
        "stands; “α try” and “β try”, where they are, are measured and no bounds. `nufed tune` finds both for each ν.",
        highlight=False,
    )


def _explain_source(source: "Constants | Estimate") -> Iterator[str]:
    from nufed.common.theory.estimate import Estimate

    constants = source.constants if isinstance(source, Estimate) else source
    yield "  ".join(f"{name} = {value:.4g}" for name, value in vars(constants).items() if value is not None)
    if isinstance(source, Estimate):
        yield (
            f"Measured at {source.num_points} point and along inner paths from it on {source.num_clients} clients "
            f"with {source.num_products} Hessian products: local estimates, lower bounds of the true suprema."
        )


def _table(rows: "list[Row]", nus: list[int]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("meaning", min_width=_NARROWEST_MEANING)  # the one that wraps on a narrow terminal
    for nu in nus:
        table.add_column(f"ν = {nu}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.symbol, row.meaning, *(f"{value:.3g}" for value in row.values))
    return table
