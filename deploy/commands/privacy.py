"""`nufed privacy`: ε against noise for a planned run, and what the noise does to its rounds."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.json_text import json_ready
from nufed.common.privacy.planning import (
    REFERENCE_EPSILON,
    SMALL_MODEL,
    USUAL_NOISES,
    Plan,
    Row,
    plan_clients,
    plan_records,
    refusals,
)
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import with_option_groups
from nufed.deploy.commands.run_options import RunOptions
from nufed.deploy.commands.tables import print_table
from nufed.deploy.commands.terminal import stdout_console

_LEAST_SHOWN = 1e-12


def register(app: typer.Typer) -> None:
    """Add the command `privacy`."""
    app.command("privacy")(with_option_groups(privacy))


def privacy(
    run: RunOptions,
    noises: Annotated[
        str | None,
        typer.Option("--noises", help="noise multipliers z to show ε for, comma-separated", metavar="LIST"),
    ] = None,
    epsilons: Annotated[
        str | None, typer.Option("--epsilons", help="ε's to find the noise for, comma-separated", metavar="LIST")
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option("--examples", min=1, help="N, training examples of one client (--dp record)", metavar="INTEGER"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Plan differential privacy: ε against noise for the run that these options describe, and what the noise costs.

    Of the options of a run it reads n (--clients), r (--fraction), K (--rounds), δ (--dp-delta) and privacy.cohort-cap;
    with --dp record those of a client's meta steps instead. --dp-noise or --dp-epsilon show the run's own row alone.
    Nothing is trained.
    """
    config, notes = run.resolve_with_notes()
    asked = _numbers("--noises", noises), _numbers("--epsilons", epsilons)
    own = [config.privacy.noise or None, None if config.privacy.noise else config.privacy.epsilon or None]
    wanted = [[*([mine] if mine else []), *listed] for mine, listed in zip(own, asked, strict=True)]
    if not any(wanted):
        wanted[0] = list(USUAL_NOISES)
    with while_working("accounting"):
        plan = _plan(config, examples, *wanted)
    refused = refusals(config)
    if as_json:
        record = {**dataclasses.asdict(plan), "is_too_small": plan.is_too_small, "refusals": refused}
        typer.echo(json.dumps(json_ready(record), indent=2, ensure_ascii=False))
        return
    console = stdout_console()

    def say(lines: Iterable[str]) -> None:
        for line in lines:
            console.print(line, highlight=False, markup=False)

    say([*notes, *_described(plan), ""])
    header = ("z", "ε", "ε, samples known", "noise of a coordinate", "parameters")
    print_table(console, header, [_cells(row) for row in plan.rows], right=len(header))
    say(["", *_judged(plan), *(f"`nufed simulate` would refuse this run: {reason}" for reason in refused)])


def _numbers(flag: str, typed: str | None) -> list[float]:
    """Return positive numbers of a comma-separated list; empty without one.

    Raises:
        ConfigError: there is none in it, or what is no positive number.
    """
    if typed is None:
        return []
    try:
        values = [float(part) for part in typed.split(",")]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and 0 < value <= 1e6 for value in values):
        raise ConfigError(
            f"{flag}={typed!r} is refused: expected numbers above 0, at most a million. Give for example 1,2,4."
        )
    return values


def _plan(config: RunConfig, examples: int | None, noises: list[float], epsilons: list[float]) -> Plan:
    if config.privacy.dp == "record":
        if examples is None:
            raise ConfigError(
                "Expected --examples N, how many examples a client trains on: with --dp record, one of them is "
                "protected, and ε depends on how many there are. Give that of the client with the fewest."
            )
        return plan_records(config, examples, noises, epsilons)
    if examples is not None:
        raise ConfigError(
            f"--examples {examples} has a meaning with --dp record alone: client-level privacy protects all of a "
            "client's examples together. Leave it out, or give --dp record."
        )
    return plan_clients(config, noises, epsilons)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.noise:.4g}",
        f"{row.epsilon:.3g}",
        f"{row.unsampled:.3g}",
        f"{row.coordinate_noise:.2g} C",
        f"{row.parameters:,.0f}",
    )


def _described(plan: Plan) -> Iterator[str]:
    delta = f"δ = {plan.delta:.3g}" + (f" ({'n' if plan.cohort else 'N'}^-1.1)" if plan.is_default_delta else "")
    if cohort := plan.cohort:
        yield (
            f"Client-level: that a client took part is protected. n = {plan.population} clients, q = {plan.rate:.4g}, "
            f"K = {plan.rounds} rounds, {delta}."
        )
        yield (
            f"A round has {cohort.expected:.4g} clients on average and at most {cohort.cap}; more are drawn with "
            f"probability {_chance(cohort.above_cap)}, nobody (the round is noise alone) with {_chance(cohort.empty)}."
        )
        return
    yield (
        f"Record-level: that an example is among a client's is protected. N = {plan.population} examples, "
        f"K = {plan.rounds} rounds, {delta}."
    )
    parts = [_mechanism(*mechanism) for mechanism in plan.mechanisms]
    yield f"One round of a client is composed of {' and '.join(parts)}; ε is that of a client chosen in every round."


def _mechanism(noise: float, rate: float, times: int) -> str:
    """Return how often a Gaussian runs in a round, its noise in units of z, and its rate."""
    of = "z" if noise == 1 else f"{noise:.3g} z"
    return f"{times} Gaussian{'s' if times > 1 else ''} of noise {of} at q = {rate:.3g}"


def _judged(plan: Plan) -> Iterator[str]:
    mean, vector = ("q n clients", "an update") if plan.cohort else ("D examples", "a gradient")
    yield (
        "ε, samples known: if it were known who is drawn, so that sampling hid nothing. Noise of a coordinate: of the "
        f"mean over {mean}, in clipping lengths. Parameters: of so many, one mean's noise is as long as C, the longest "
        f"that {vector} can be."
    )
    if not plan.is_too_small:
        return
    needed = plan.noise_for_reference
    what = "clients" if plan.cohort else "examples"
    yield (
        f"With {plan.population} {what}, ε = {REFERENCE_EPSILON:g} "
        + ("cannot be had." if needed is None else f"needs z ≈ {needed:.2g}.")
        + f" That drowns even a model of {SMALL_MODEL} parameters in each round: there are too few {what}. "
        + (
            "More clients help most (the noise falls as 1/n), fewer rounds and a smaller model somewhat; or protect "
            "single examples within each client, which needs many examples instead of many clients: --dp record."
            if plan.cohort
            else "More examples and larger batches help most, fewer rounds and a smaller model somewhat."
        )
    )


def _chance(probability: float) -> str:
    return "less than 1e-12" if 0 < probability < _LEAST_SHOWN else f"{probability:.2g}"
