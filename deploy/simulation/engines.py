"""A whole federation on one machine: checks what was asked for, then hands both apps to an engine."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, DivergedError, NothingTrainedError, RunError
from nufed.common.examples import Federation, Group
from nufed.common.privacy.publishing import Publication
from nufed.common.privacy.rules import check_attack, check_privacy, check_scales
from nufed.common.registry import find_registered
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.deploy.simulation.simulated_grid import SimulatedGrid
from nufed.deploy.simulation.simulated_time import SimulatedClock
from nufed.server.run import ServerOptions

_EQUAL = "slow:0:1"
"""Speeds of clients that have none in buffered mode, which is about what happens when."""


def simulate(
    config: RunConfig, options: ServerOptions, *, engine: str, engine_options: EngineOptions | None = None
) -> None:
    """Run a federation and leave its run folder.

    Args:
        config: the run's options.
        options: where to write and whom to tell.
        engine: a key of `ENGINES`.
        engine_options: what the engine is told; None is nothing.

    Raises:
        NufedError: the run cannot start or go on.
        KeyboardInterrupt: after what there is was written.
    """
    run, told = find_engine(engine), engine_options or EngineOptions()
    told.check(engine)
    run(config, options, told)


def simulate_checked(
    config: RunConfig,
    options: ServerOptions,
    *,
    engine: str,
    engine_options: EngineOptions | None = None,
    attack: tuple[str, int] | None = None,
) -> None:
    """Run a federation, or go on with one, after everything that can be wrong was tried.

    What `nufed simulate` and `nufed.simulate` do.

    Args:
        config: the run's options.
        options: where to write, what to resume and whom to tell.
        engine: a key of `ENGINES`.
        engine_options: what the engine is told; None is nothing.
        attack: name and number of attackers (nufed.deploy.simulation.attacks); None is an honest federation.

    Raises:
        NufedError: the run cannot start or go on.
        KeyboardInterrupt: after what there is was written.
    """
    find_engine(engine)
    (engine_options or EngineOptions()).check(engine)
    check_privacy(config)
    options.events.publication = Publication.of(config)
    if options.resume:
        check_resumable(options.resume, config)
    else:
        config, options = settled(config, options)
    federation = prepare(config)
    for note in federation.notes:
        options.events.say_of_clients(note)
    options = attacked(options, attack, config, federation) if attack else options
    simulate(config, options, engine=engine, engine_options=engine_options)


def attacked(
    options: ServerOptions, attack: tuple[str, int], config: RunConfig, federation: Federation
) -> ServerOptions:
    """Return the options of a run in which some clients attack, after it was said which.

    Raises:
        ConfigError: the attack is unknown, has no meaning for the task, or leaves no honest client.
    """
    from nufed.deploy.simulation.attacks import recruit

    check_attack(config, attack[0])
    if config.federation.mode == "buffered" and attack[0] in ("alie", "inner-product"):
        raise ConfigError(
            f"--attack {attack[0]} contradicts federation.mode=buffered: it is made of the others' updates of a round, "
            "and there are no rounds. Choose another attack, or set mode to synchronous."
        )
    hostile = recruit(*attack, config, federation)
    attackers = ", ".join(sorted(hostile.clients.values()))
    options.events.say_of_clients(f"attack {hostile.attack} by {attackers}: all means are of the others")
    return replace(options, hostile=hostile)


def settled(config: RunConfig, options: ServerOptions) -> tuple[RunConfig, ServerOptions]:
    """Return the options with what follows from data of all clients: names, means, and how many clients there are.

    Raises:
        NufedError: the data cannot be had, or privacy withholds what would follow.
    """
    from nufed.common.data.private.simulated import is_own_file, settle, site_statistics_of
    from nufed.common.data.private.task import awaits_statistics, statistics_shape

    if not is_own_file(config.data):
        return config, options
    given, config = config, settle(config)
    keys = ("feature_means", "target_means")
    inferred = [key for key in keys if getattr(config.data, key) and not getattr(given.data, key)]
    check_scales(given, [f"data.{key.replace('_', '-')}" for key in inferred])
    options.events.say("what the data are (names, categories, classes, means) is written into the run's config.json")
    if not awaits_statistics(config.data):
        return config, options
    from nufed.deploy.commands.gathering import scaled_by
    from nufed.server.statistics import StatisticsReport
    from nufed.strategy.statistics import GatheredStatistics

    gathered = GatheredStatistics(statistics_shape(config.data), dict(sorted(site_statistics_of(config).items())))
    return scaled_by(StatisticsReport.of(gathered), config, options)


def prepare(config: RunConfig) -> Federation:
    """Return the federation after everything that can be wrong with the options was tried, before anything starts.

    Of a large federation, whose clients are made when they are asked, one client is tried. The data stay loaded, so
    that an engine in this process does not load them again.

    Raises:
        ConfigError: a name is unknown.
        DataError: the data cannot be had or dealt.
        ModelError: the model cannot be built, does not fit the data, or cannot be trained on them.
    """
    from nufed.client.model_pair import model_pair
    from nufed.client.workplace import on_device
    from nufed.common.data import load_federation
    from nufed.common.data.on_demand import MANY
    from nufed.common.meta.estimators import find_estimator
    from nufed.common.models import DTYPES
    from nufed.common.settings import process_settings
    from nufed.common.tasks.client_check import check_client_targets
    from nufed.common.tasks.options import with_loss_options
    from nufed.common.tasks.weights import weighted_client
    from nufed.server.shared_scales import check_shared_scales
    from nufed.strategy.buffer_options import check_buffer
    from nufed.strategy.robust_options import check_config

    find_estimator(config.method.estimator)
    check_config(config)
    check_privacy(config)
    check_buffer(config.federation, config.data.num_clients)
    settings = process_settings()
    dtype = DTYPES[config.model.dtype]
    federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=settings)
    task = with_loss_options(federation.task, config.task)
    is_large = len(federation.clients) > MANY
    for client in federation.clients[:1] if is_large else federation.clients:  # the others when they are first asked
        check_client_targets(client, task)
    check_shared_scales(config)
    clock_of(config)
    client = on_device(weighted_client(federation.clients[0], task), settings.device)
    pair = model_pair(config.model, task, config.seed, settings.device)
    pair.losses(client, pair.with_head(client, config.method))
    notes = () if is_large else _batch_notes(config, federation)
    return replace(federation, notes=(*federation.notes, *notes))


def _batch_notes(config: RunConfig, federation: Federation) -> Iterator[str]:
    """Yield a note where batches are larger than any client's data: they repeat examples, and cost accordingly.

    Batches of record-level differential privacy are samples of the client's records and repeat none.
    """
    what = "batches hold them several times over and take that much longer; 0 takes each example once"
    if config.privacy.dp == "record":
        what = "each batch is all of a client's examples, so that sampling hides nothing and ε is larger"
    method, most = config.method, max(len(client.support) for client in federation.clients)
    shown = f"the {most}" if Publication.of(config).examples else "the number of"
    sizes = {
        "method.batch-size": method.batch_size,
        "method.outer-batch-size": method.outer_batch_size,
        "method.hessian-batch-size": method.hessian_batch_size,
    }
    for key, size in sizes.items():
        if size > most:
            yield f"{key}={size} is more than {shown} examples of the largest client: {what}"


def check_resumable(folder: Path, config: RunConfig) -> None:
    """Refuse a run that cannot go on, or has nothing left to do.

    A complete run goes on where clients did not answer its final evaluation, which is all that is repeated then.

    Raises:
        ConfigError: fewer rounds are asked for than are done.
        RunError: the run is complete, or its checkpoint, options and log do not belong together.
        NothingTrainedError: all rounds are done, and none had a reply that could be used.
        DivergedError: all rounds are done, and it diverged.
    """
    from nufed.server.outcome import lacks_answers, read_outcome
    from nufed.server.resuming import resume_point

    done, asked = resume_point(folder).round, config.federation.num_rounds
    if asked < done:
        raise ConfigError(f"--rounds={asked} is fewer than the {done} rounds that {folder} has done. Ask for more.")
    if asked > done or (outcome := read_outcome(folder)) is None:
        return
    if outcome["status"] == "nothing-trained":
        raise NothingTrainedError(f"The run in {folder} is over and has trained nothing. {outcome.get('reason')}")
    if outcome["status"] == "diverged":
        raise DivergedError(f"The run in {folder} is over: it diverged. {outcome.get('reason')}")
    if outcome["status"] == "complete" and not lacks_answers(folder):
        raise RunError(f"Expected a run with rounds left in {folder}, but all {done} are done. Ask for more: --rounds.")


def find_engine(name: str) -> Callable[[RunConfig, ServerOptions, EngineOptions], None]:
    """Return the registered engine.

    Raises:
        ConfigError: the name is unknown.
    """
    return find_registered(ENGINES, name, what="engine", option="--engine")


def choose_engine(config: RunConfig) -> str:
    """Return what `auto` stands for (docs/decisions/0007-cohort-engine.md).

    `cohort` where several clients train at once and the model is made of linear layers without dropout, which is where
    one batched computation is several times faster on every machine measured; `local` otherwise, and for methods that
    are computed for one client at a time.
    """
    from nufed.common.data import task_of_run
    from nufed.common.method_rules import sequential_training
    from nufed.common.models import build_model
    from nufed.common.settings import process_settings
    from nufed.common.steps.dense_layers import dense_layers
    from nufed.strategy.participation import num_chosen

    task = task_of_run(config, process_settings())
    is_dense = dense_layers(build_model(config.model, task, seed=config.seed), task) is not None
    several = num_chosen(config.data.num_clients, config.federation.participation_fraction) > 1
    return "cohort" if is_dense and several and not sequential_training(config) else "local"


def _auto(config: RunConfig, options: ServerOptions, told: EngineOptions) -> None:
    ENGINES[choose_engine(config)](config, options, told)


def _in_process(config: RunConfig, options: ServerOptions, _: EngineOptions) -> None:
    from nufed.client.app import app as client_app
    from nufed.deploy.simulation.in_process import simulate_in_process

    server_app = _server_app(config, options, "local")
    simulate_in_process(server_app, client_app, num_nodes=_num_nodes(config), run_config=config.flat())


def _as_cohort(config: RunConfig, options: ServerOptions, _: EngineOptions) -> None:
    from nufed.client.app import app as client_app
    from nufed.deploy.simulation.cohort import simulate_as_cohort

    server_app = _server_app(config, options, "cohort")
    simulate_as_cohort(server_app, client_app, num_nodes=_num_nodes(config), run_config=config.flat())


def _in_processes(config: RunConfig, options: ServerOptions, told: EngineOptions) -> None:
    from nufed.deploy.simulation.process_pool import simulate_in_processes

    server_app, num_nodes = _server_app(config, options, "processes"), _num_nodes(config)
    simulate_in_processes(
        server_app, "nufed.client.app:app", num_nodes=num_nodes, run_config=config.flat(), options=told
    )


def _with_ray(config: RunConfig, options: ServerOptions, told: EngineOptions) -> None:
    from nufed.common.data import load_federation, shared_scaling
    from nufed.common.data.federation import hold_federation
    from nufed.common.models import DTYPES
    from nufed.common.settings import process_settings
    from nufed.deploy.simulation.ray_simulation import simulate_with_ray

    settings, dtype = process_settings(), DTYPES[config.model.dtype]
    federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=settings)
    scaling = shared_scaling(config.data, settings, seed=config.seed)
    simulate_with_ray(
        _server_app(config, options, "ray"),
        "nufed.client.app:app",
        num_nodes=_num_nodes(config),
        run_config=config.flat(),
        options=told,
        data=partial(hold_federation, config.data, config.seed, federation, scaling),
        say=options.events.say,
        name_of=lambda partition: federation.clients[partition].client_id,
    )


ENGINES = {"auto": _auto, "local": _in_process, "cohort": _as_cohort, "processes": _in_processes, "ray": _with_ray}
"""`local` runs the clients in turn in this process: no start-up, least memory, and the same bits as every deployment.
`processes` and `ray` spread them over the processors of this machine, or of a cluster, with the same bits. `cohort`
computes all clients of a phase at once, equal to the others up to rounding. `auto` chooses between `cohort` and
`local`."""


def _server_app(config: RunConfig, options: ServerOptions, engine: str) -> ServerApp:
    """Return the server, which first tells its grid who attacks, how fast clients are, and who they are if many."""
    from nufed.deploy.simulation.attacks import Adversary
    from nufed.server.app import build_server_app

    server_app, told, clock = build_server_app(replace(options, engine=engine)), ServerApp(), clock_of(config)
    adversary, clients = Adversary(options.hostile) if options.hostile else None, _listed(config)

    @told.main()
    def main(grid: Grid, context: Context) -> None:
        simulated = cast("SimulatedGrid", grid)
        simulated.adversary, simulated.clients, simulated.clock = adversary, clients, clock
        server_app(grid=grid, context=context)

    return told


def clock_of(config: RunConfig) -> SimulatedClock:
    """Return the time of a simulation, in which clients train for as long as federation.client-speeds says.

    Raises:
        ConfigError: it says nothing that is understood.
        DataError: names of clients are needed, and the data cannot be had.
    """
    from nufed.common.client_speeds import client_seconds
    from nufed.common.data import list_clients, load_federation
    from nufed.common.models import DTYPES
    from nufed.common.settings import process_settings

    def names() -> list[str]:
        listed = list_clients(config.data, seed=config.seed, settings=process_settings())
        if listed is not None:
            return [name for name, _ in listed]
        dtype = DTYPES[config.model.dtype]
        federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=process_settings())
        return [client.client_id for client in federation.clients]

    federation = config.federation
    if not (speeds := federation.client_speeds or (_EQUAL if federation.mode == "buffered" else "")):
        return SimulatedClock()
    return SimulatedClock(
        client_seconds(speeds, config.data.num_clients, _num_nodes(config), seed=config.seed, names=names)
    )


def _listed(config: RunConfig) -> Sequence[tuple[str, Group]]:
    """Return names and groups of many clients, so that only those that take part are made; empty where all are asked.

    All are asked where a round needs all their sizes, as they weigh by their examples, and where who takes part may be
    private: whom the server gets to know in which round would tell.
    """
    from nufed.common.data import list_clients
    from nufed.common.data.on_demand import MANY
    from nufed.common.settings import process_settings

    is_private = config.privacy.dp != "none" or config.privacy.secure_aggregation
    if _num_nodes(config) <= MANY or config.federation.weighting != "uniform" or is_private:
        return ()
    return list_clients(config.data, seed=config.seed, settings=process_settings()) or ()


def _num_nodes(config: RunConfig) -> int:
    return config.data.num_clients + config.data.num_new_clients


def run_status(folder: Path) -> str | None:
    """Return how a run ended (nufed.server.outcome), or None for a run that is going on or was killed.

    Raises:
        RunError: the run's summary cannot be read.
    """
    from nufed.server.outcome import read_outcome

    outcome = read_outcome(folder)
    return None if outcome is None else str(outcome["status"])
