"""`nufed.simulate`: a whole federation in this program, as the command `nufed simulate` runs it."""

import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig, Scalar
from nufed.common.data import task_of_run
from nufed.common.errors import ConfigError, RunError
from nufed.common.events import Event, EventStream, Started
from nufed.common.given import given_file
from nufed.common.settings import exported, process_settings
from nufed.deploy.monitoring.tracking import check_tracking, tracked
from nufed.deploy.simulation.engine_options import split_engine_options
from nufed.deploy.simulation.engines import find_engine, simulate_checked
from nufed.library.arguments import as_attack, as_config, as_folder, as_name
from nufed.library.given_data import GivenData, read_dataset
from nufed.library.given_model import GivenModel, fingerprint, read_model
from nufed.library.given_task import GivenJudging, GivenTask, read_judging
from nufed.library.options import config_and_notes, split_machine
from nufed.library.progress import ProgressBar
from nufed.library.run import Origin, Run, TemporaryFolder
from nufed.library.tables import Columns
from nufed.library.turns import private
from nufed.library.wording import in_words_of_python
from nufed.server.observer import ObserverSink
from nufed.server.resuming import stored_config
from nufed.server.run import ServerOptions

IN_PROCESSES = ("processes", "ray")
"""Engines whose clients run in processes of their own."""


@in_words_of_python
def simulate(  # noqa: PLR0913 - all by name
    dataset: Any = None,
    model: Any = None,
    *,
    task: Any = None,
    metrics: Any = None,
    primary_metric: Any = None,
    config: RunConfig | None = None,
    method: str | None = None,
    engine: str = "local",
    new_clients: Iterable[Any] | None = None,
    client_column: str | None = None,
    group: str | Mapping[Any, Any] | None = None,
    input_columns: str | Sequence[str] | None = None,
    target_column: str | None = None,
    out: str | os.PathLike[str] | None = None,
    attack: str | None = None,
    attackers: int | None = None,
    progress: bool = True,
    track: str | Sequence[str] = (),
    **options: Any,
) -> Run:
    """Train a starting point over clients' data on this machine, and judge how clients adapt it.

    The same options, data and model give the same model, bit for bit, as the command `nufed simulate` does.

    Args:
        dataset: the clients' examples, as one of

            * a dict from client name to `(inputs, targets)`: arrays or tensors, inputs [N, ...] or a tuple or dict of
              such; targets [N] whole numbers (classes from 0), [N] or [N, K] floats (values to predict), or of the
              form of another `data.task`, which is given as `task="multi-label"` and so on. uint8 inputs of three or
              more dimensions are pixels and scaled to [0, 1]; values may be scaled by the run (`input_scale`,
              `target_scale`), and everything else is taken as it is;
            * a dict from client name to a map-style torch `Dataset` of `(input, target)`;
            * a Hugging Face `datasets.Dataset` or a pandas frame, with `client_column` and `target_column`; or a dict
              from client name to one such table each; or a partitioner of flwr-datasets with its dataset;
            * a `nufed.common.examples.Federation` with its own splits;
            * a name, as `--dataset` takes it: `"digits"`, `"csv:all.csv?label=COLUMN&user=COLUMN"`,
              `"npz:PATH"`, `"python:module:function"`;

            None takes the configuration's. Of clients given in Python, all take part but those of `new_clients`;
            `num_clients` and `num_new_clients` draw fewer of them at random.
        model: a `torch.nn.Module`, whose parameters are the starting point; a function that returns a module, called
            with nothing, with `(task)` or with `(config, task)` as far as it needs arguments, torch being seeded by
            the run's seed; or a name, as `--model` takes it. None takes the configuration's.
        task: what the data are for: a name as `data.task` takes it; an `OwnTask`; a function (outputs, targets) ->
            each example's loss [B]; or a function (TaskInfo) -> `OwnTask`. None takes the configuration's.
        metrics: what models are judged by: names and functions (outputs [N, ...], targets) -> float, called like the
            function, NaN where it is undefined; less is better where the function has the attribute
            `lower_is_better = True`. None takes the configuration's.
        primary_metric: one of them, or `"loss"`.
        config: options to begin with; keyword options win.
        method: a preset, e.g. `"per-fedavg"`; `nufed methods` lists them.
        engine: `local` (one client after another), `cohort` (all at once, equal up to rounding), `processes`, `ray`,
            or `auto`.
        new_clients: names of clients that never take part in training and are judged at the end.
        client_column: column that says whose example a row is.
        input_columns: one column of arrays or images, or several of numbers; None takes all other columns.
        group: what says which examples, such as a patient's, go to one split of their client together: a column of
            tables, or a dict from client name to names or whole numbers [N]; or the third value of each client,
            `(inputs, targets, groups)`.
        target_column: column of classes (numbers or texts) or of values to predict.
        out: folder that the run's folder is made in. None makes it in a temporary folder that lasts as long as the
            `Run` that is returned; `Run.save` keeps it.
        attack: has some participating clients attack, to see what `aggregation` stands (docs/robust-aggregation.md):
            `sign-flip`, `scaled`, `label-flip`, `alie` or `inner-product`. All means are then over the others.
        attackers: how many, chosen by the seed; given together with `attack`.
        progress: show a bar on a terminal or in a notebook.
        track: tools that record the run: `"tensorboard"`, `"mlflow"`, `"mlflow:URI"` or `"wandb"`, or several.
        **options: options of the run by their field names, e.g. `num_inner_steps=3, inner_lr=0.05, num_rounds=60`
            (`nufed options` lists them with their defaults), and of the machine: `device`, `num_threads`,
            `data_root`, `download`; and what engines are told of machines (docs/cluster.md): `ray_address`,
            `ray_resources`, `cpus_per_client`, `gpus_per_client`, `clients_per_actor`.

    Returns:
        The run, with its model, curves and summary.

    Raises:
        NufedError: a `ConfigError` of options, a `DataError` of the data, a `ModelError` of the model, or a `RunError`
            where the run cannot go on; a `DivergedError` (a `ModelError`) or `NothingTrainedError` (a `RunError`)
            where it came to nothing; a `BudgetSpentError` (a `RunError`) where one more round would reveal more than
            ε allows, after what there is was evaluated and written to `out`.
        KeyboardInterrupt: after what there is was written to `out`; `load_run(...).resume()` goes on.

    Examples:
        >>> import numpy as np, nufed
        >>> rng = np.random.default_rng(0)
        >>> clients = {}
        >>> for name in ("north", "east", "south", "west"):
        ...     inputs = rng.normal(size=(40, 3)).astype("float32")
        ...     clients[name] = inputs, (inputs @ rng.normal(size=3) > 0).astype(int)
        >>> run = nufed.simulate(clients, "linear", new_clients=["west"], num_rounds=2, progress=False)
        >>> sorted(run.curves("new")["client"].unique())
        ['west']
    """
    trackers = check_tracking([track] if isinstance(track, str) else list(track))
    columns = Columns(client_column, input_columns, target_column, group)
    said = read_judging(task, metrics, primary_metric)
    options, told = split_engine_options(options)
    values, machine = split_machine(options)
    find_engine(as_name(engine, "engine"))
    chosen = as_attack(attack, attackers)
    folder = None if out is None else as_folder(out, "out")
    is_given = not (dataset is None or isinstance(dataset, str))
    data = None
    if is_given:
        asked = config_and_notes(as_config(config), method, values, {})[0].updated(said.options)
        with private({}, said.objects):
            data = read_dataset(dataset, columns, new_clients, asked.data)
    if data is None and (columns.named or group is not None or new_clients is not None):
        raise ConfigError(
            "new_clients and columns belong to a dataset given in Python. With a name, give num_new_clients instead."
        )
    settled, notes = config_and_notes(as_config(config), method, values, _sizes(data))
    with private(machine):
        settled, origin = _named(settled.updated(said.options), said, dataset, data, model)
        told.check(engine)
        made_of = Origin(origin, engine, machine, chosen, told)
        return conduct(settled, made_of, folder, shown=progress, told=Told(notes, trackers))


@dataclass(frozen=True)
class Told:
    """What is told of a run: lines to begin with, and tracking tools (`check_tracking`)."""

    notes: Sequence[str] = ()
    trackers: Sequence[str] = ()


def conduct(
    config: RunConfig, origin: Origin, where: Path | Run | None, *, shown: bool, told: Told | None = None
) -> Run:
    """Run a federation, or go on with one, and return it.

    Args:
        config: the run's options.
        origin: what it is made of.
        where: the folder to make the run's folder in, None for a temporary one; or the run to go on with.
        shown: whether to show a bar.
        told: what to show above it, and who else is told of the run.
    """
    resumed, told = where if isinstance(where, Run) else None, told or Told()
    temporary = resumed.temporary if resumed else TemporaryFolder() if where is None else None
    out = where if isinstance(where, Path) else temporary.path if temporary else Path()
    with (
        private(origin.machine, origin.objects),
        _readable_by_workers(origin),
        ProgressBar(shown=shown) as bar,
        EventStream() as events,
        tracked(events, told.trackers),
    ):
        folder = _Folder()
        for note in told.notes:
            bar.say(note)
        events.attach(ObserverSink(bar, "the bar"), patience=None)
        events.listen(folder)
        options = ServerOptions(out=out, resume=resumed.path if resumed else None, events=events)
        engine, spread = origin.engine, origin.engine_options
        simulate_checked(config, options, engine=engine, engine_options=spread, attack=origin.attack)
    if folder.path is None:
        raise AssertionError("the run has no folder")
    return Run(folder.path, origin, temporary=temporary)


class _Folder:
    """Listens to a run's events; holds the folder that it is written to."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.path = Path(event.folder)


@in_words_of_python
def load_run(  # noqa: PLR0913 - all by name
    path: str | os.PathLike[str],
    *,
    dataset: Any = None,
    model: Any = None,
    task: Any = None,
    metrics: Any = None,
    primary_metric: Any = None,
    **tables: Any,
) -> Run:
    """Return a run that was made before, by `nufed.simulate` or by the command line.

    Args:
        path: the run's folder.
        dataset: what the run was given, where it was given in Python; needed for `Run.model` and `Run.resume`.
        model: likewise.
        task: likewise.
        metrics: likewise; needed for `Run.resume` alone.
        primary_metric: likewise.
        **tables: `new_clients`, `client_column`, `input_columns`, `target_column` and `group`, as they were given.

    Raises:
        RunError: the folder is not a run's.
        ConfigError: dataset, model, task or metrics are others than the run's.

    Examples:
        >>> import nufed, tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> run = nufed.simulate("sinusoid", out=folder.name, num_rounds=1, progress=False)
        >>> nufed.load_run(run.path).summary["rounds"]
        1
        >>> folder.cleanup()
    """
    folder = as_folder(path, "path")
    config = stored_config(folder)
    said = read_judging(task, metrics, primary_metric)
    return Run(folder, Origin(given_again(config, said, dataset, model, **tables)))


def given_again(config: RunConfig, said: GivenJudging, dataset: Any, model: Any, **tables: Any) -> dict[str, Any]:
    """Return the objects of a run by the names that its options have for them.

    Raises:
        ConfigError: they are others than the run's.
    """
    names = ("new_clients", "client_column", "input_columns", "target_column", "group")
    if unknown := sorted(set(tables) - set(names)):
        raise ConfigError(f"Unknown option {unknown[0]!r}. Known: {', '.join(names)}.")
    columns = Columns(*(tables.get(name) for name in names[1:]))
    known = config.flat()
    for key, name in said.options.items():
        _check_same(key.rpartition(".")[2].replace("-", "_"), name, known[key])
    objects = dict(said.objects)
    if dataset is not None and not isinstance(dataset, str):
        with private({}, objects):
            data = read_dataset(dataset, columns, tables.get("new_clients"), config.data)
        objects[data.source] = data.content
        _check_same("dataset", data.source, config.data.source)
    elif dataset is not None:
        _check_same("dataset", dataset, config.data.source)
    if isinstance(model, str):
        _check_same("model", model, config.model.name)
    elif model is not None:
        build = read_model(model)
        with private({}, objects):
            task = task_of_run(config, process_settings())
            name = fingerprint(build, config.model, task, seed=config.seed)
        _check_same("model", name, config.model.name)
        objects[name] = build
    return objects


def _check_same(what: str, now: Scalar, then: Scalar) -> None:
    if now != then:
        raise ConfigError(
            f"Expected the {what} of the run, {then!r}, but got another one, {now!r}. Give the same {what}, or start a "
            "new run with nufed.simulate."
        )


def _sizes(data: GivenData | None) -> dict[str, Scalar]:
    """Return the numbers of clients that follow from data given in Python."""
    return {"data.num-clients": data.num_clients, "data.num-new-clients": data.num_new_clients} if data else {}


def _named(
    config: RunConfig, said: GivenJudging, dataset: Any, data: GivenData | None, model: Any
) -> tuple[RunConfig, dict[str, Any]]:
    """Return the options with data and model named, and all that was given in Python by its names."""
    objects = dict(said.objects)
    if data is not None:
        objects[data.source] = data.content
    if dataset is not None:
        config = config.updated({"data.source": dataset if data is None else data.source})
    if isinstance(model, str):
        return config.updated({"model.name": model}), objects
    if model is not None:
        build = read_model(model)
        with private({}, objects):
            task = task_of_run(config, process_settings())
            name = fingerprint(build, config.model, task, seed=config.seed)
        objects[name] = build
        config = config.updated({"model.name": name})
    return config, objects


@contextmanager
def _readable_by_workers(origin: Origin) -> Iterator[None]:
    """Leave what was given in Python where the processes that the engine starts can read it."""
    if origin.engine not in IN_PROCESSES or not origin.objects:
        yield
        return
    with ExitStack() as held:
        folder = Path(
            held.enter_context(tempfile.TemporaryDirectory(prefix="nufed-given-", ignore_cleanup_errors=True))
        )
        for name, content in origin.objects.items():
            given_file(folder, name).write_bytes(_pickled(content, origin.engine))
        held.enter_context(exported(given=folder))
        yield


def _pickled(content: Any, engine: str) -> bytes:
    import cloudpickle  # takes functions of notebooks, scripts and closures too

    try:
        return bytes(cloudpickle.dumps(content))
    except (TypeError, AttributeError, pickle.PicklingError, RecursionError) as error:
        what, way = "a metric", "metrics=['module:function']"
        if isinstance(content, GivenModel):
            what, way = "the model", "model='module:function'"
        if isinstance(content, GivenTask):
            what, way = "the task", "task='python:module:function'"
        raise RunError(
            f"Expected to hand {what} to the processes of engine {engine!r}, but it cannot be pickled ({error}). "
            f"Put the function into a module and give its name, {way}, or use engine='local'."
        ) from error
