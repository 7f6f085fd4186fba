"""Cells spread over a Ray cluster: each is one task on whatever node has room, and its files come back through Ray.

Nodes may share nothing with this machine: a task writes to a folder of its own on its node, which is removed when its
files have been read. What is in flight is bounded by the CPUs of the cluster, so what has come back and is not written
yet is too. A task that was lost with its node starts again elsewhere; what a run itself is ended by is raised here, as
with worker processes of this machine.
"""

import math
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, cast

from nufed.common.durable_file import is_running, write_bytes, writing
from nufed.common.errors import ConfigError, NufedError, RunError
from nufed.common.settings import process_settings
from nufed.deploy.experiments.cells import CELLS, DONE, Cell, Outcome, outcome_of, run_cell
from nufed.deploy.experiments.told import Trackers
from nufed.deploy.simulation.ray_cluster import RayCluster, ray_cluster

MOST_BYTES = 2**30
"""Bytes of one run's files that are sent back."""

ATTEMPTS = 4
"""How often a cell is started whose tasks are lost."""

_OTHER = "See that no other NuFed is installed on that node, and give the command again."

_PATIENCE = 3.0
"""Seconds that tasks have to remove their folders when they are called off."""

_END_OF_SHORT_ONES = 1.0
"""Seconds that tasks have to end by themselves; Ray aborts the program where one ends as it is cancelled."""


@dataclass(frozen=True)
class Far:
    """What a task sends back.

    Attributes:
        files: content by path within the suite's folder.
        host: where it ran.
    """

    files: Mapping[str, bytes]
    host: str


@dataclass
class RayCells:
    """Runs cells on a cluster; holds the connection, which is made when there is something to run.

    Attributes:
        address: of Ray, as `nufed.deploy.simulation.ray_cluster` takes it.
        engine: a key of `nufed.deploy.simulation.engines.ENGINES`.
    """

    address: str
    engine: str
    _held: ExitStack = field(default_factory=ExitStack)
    _cluster: RayCluster | None = None

    def __enter__(self) -> "RayCells":
        """Begin without a connection."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of the cluster."""
        self._held.close()

    def num_at_a_time(self) -> int:
        """Return how many cells the cluster has room for now; connects if nothing has been asked of it yet.

        Raises:
            ConfigError: one GPU is named by its number, which differs on each node.
            RunError: there is no such cluster, or it has too few CPUs, or no GPU, for one cell.
        """
        gpus = _gpus()
        if self._cluster is None:
            self._cluster = self._held.enter_context(ray_cluster(self.address))
        if (count := self.room()) < 1 and gpus:
            raise RunError(
                f"Expected a node with a GPU and {_cpus()} CPUs for each run (--device, --threads), but the cluster "
                "has none. Add such a node, or leave the device out, and runs use processors."
            )
        if count < 1:
            raise RunError(
                f"Expected a node with {_cpus()} CPUs, as many as each run has threads (--threads), but the cluster "
                "has none. Add nodes with `ray start --address`, or give each run fewer threads."
            )
        return count

    @property
    def is_here(self) -> bool:
        """Return whether this machine is all that there is, so that files are where they are."""
        return self._cluster is not None and self._cluster.is_own

    def room(self) -> int:
        """Return how many cells the nodes that are there have CPUs for.

        Raises:
            RunError: a node lacks what NuFed needs.
        """
        nodes = self._cluster.nodes() if self._cluster else []
        resources, gpus = [dict(node.resources) for node in nodes], _gpus()
        return sum(
            int(min(each["CPU"] // _cpus(), each.get("GPU", 0) // gpus if gpus else math.inf)) for each in resources
        )

    @contextmanager
    def started(
        self, cells: Sequence[Cell], out: Path, trackers: Trackers, say: Any
    ) -> Iterator[Iterator[tuple[Cell, Outcome]]]:
        """Offer the cells as they finish, after their files were written to `out`; what is left then is called off."""
        work = _Work(self, out, trackers, say)
        try:
            yield work.finished(cells)
        finally:
            work.call_off()


class _Work:
    """Holds which task is which cell, and how often each was started."""

    def __init__(self, owner: RayCells, out: Path, trackers: Trackers, say: Any) -> None:
        import ray

        self._owner, self._out, self._say = owner, out, say
        self._running: dict[Any, Cell] = {}
        self._starts: dict[str, int] = {}
        task = ray.remote(run_far).options(num_cpus=_cpus(), num_gpus=_gpus(), max_retries=0)
        here = Path.cwd() if owner.is_here else None
        self._sent: dict[str, Any] = {}
        self._start = lambda cell: task.remote(cell, owner.engine, trackers, here, self._source(cell))

    def _source(self, cell: Cell) -> Any:
        """Return a reference to a cell's source, where that is a file below this folder; each file is sent once."""
        path = source_file(cell)
        if self._owner.is_here or path is None:
            return None
        if path not in self._sent:
            import ray

            self._sent[path] = ray.put(read_source(path))
        return self._sent[path]

    def finished(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        import ray

        waiting = deque(cells)
        if not self._owner.is_here and ray.available_resources().get("CPU", 0.0) < _cpus():  # type: ignore[no-untyped-call]
            self._say(f"Ray: waiting for {_cpus()} CPU, which the cluster has but others use; Ctrl-C gives up")
        while waiting or self._running:
            while waiting and len(self._running) < max(1, self._owner.room()):
                cell = waiting.popleft()
                self._starts[cell.name] = self._starts.get(cell.name, 0) + 1
                self._running[self._start(cell)] = cell  # type: ignore[no-untyped-call]
            done, _ = ray.wait([*self._running], num_returns=1, timeout=5.0)
            for task in done:
                cell = self._running.pop(task)
                far = self._fetched(task, cell)
                if far is None:
                    waiting.appendleft(cell)
                else:
                    yield cell, unpacked(far, cell, self._out)

    def _fetched(self, task: Any, cell: Cell) -> Far | None:
        """Return what a task made; None where it was lost and is to be started again.

        Raises:
            NufedError: the run's own explanation.
            RunError: it was lost too often.
        """
        import ray

        try:
            made = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None  # type: ignore[no-untyped-call]
        except ray.exceptions.RuntimeEnvSetupError as error:
            raise RunError(f"Expected a node to prepare for the runs, but it cannot: {error}") from error
        except ray.exceptions.RayError as error:
            lost = f"{cell.entry}, seed {cell.config.seed}"
            if (count := self._starts[cell.name]) >= ATTEMPTS:
                raise RunError(
                    f"Expected the cluster to finish {lost}, but {count} times the process or the node that it ran on "
                    "was ended, often for want of memory. Give the command again to go on, on larger nodes."
                ) from error
            self._say(f"{lost}: the process or the node that it ran on is gone; it starts again")
            return None
        if isinstance(made, NufedError):
            raise made
        return cast("Far", made)

    def call_off(self) -> None:
        """End the tasks that run, and give them a moment to clean up."""
        import ray

        if not self._running:
            return
        with suppress(ray.exceptions.RayError, RuntimeError, ConnectionError):
            left = [*self._running]
            for force, patience in ((False, _END_OF_SHORT_ONES), (True, _PATIENCE)):
                _, left = ray.wait(left, num_returns=len(left), timeout=patience)
                for task in left:
                    ray.cancel(task, force=force)
                if not left:
                    return


def check_engine(engine: str) -> None:
    """Refuse what cannot run on a cluster before anything starts.

    Raises:
        ConfigError: the engine starts Ray itself.
        RunError: Ray is not installed.
    """
    if engine == "ray":
        raise ConfigError(
            "--engine ray contradicts --jobs ray: the cluster's nodes run whole federations, or their clients. Leave "
            "one of them out."
        )
    try:
        import ray  # noqa: F401 - only asked whether it is there
    except ImportError as error:
        raise RunError(
            f"Expected Ray for --jobs ray, but it cannot be imported ({error}). Install it with pip install "
            "'flwr[simulation]', or give a number: --jobs N."
        ) from error


def run_far(
    cell: Cell, engine: str, trackers: Trackers, working_folder: Path | None, source: bytes | None
) -> Far | NufedError:
    """Run a cell in a folder of this node, and return its files, or what the run explains, which Ray would rewrite.

    Args:
        cell: what to run.
        engine: what runs a federation.
        trackers: tracking tools that are told of the run.
        working_folder: where the experiment was started, on this machine; None leaves the folder of the code that came.
        source: content of the file that the cell's data come from; None leaves it to be found here.
    """
    from nufed.deploy.experiments.runner import settle

    settle()
    _remove_left_over()
    before = Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-"))
    try:
        if working_folder is not None:
            os.chdir(working_folder)
        if source is not None and (path := source_file(cell)) is not None:
            place = folder / "work" / path
            place.parent.mkdir(parents=True)
            place.write_bytes(source)
            os.chdir(folder / "work")
        run_cell(cell, folder / "out", engine, trackers)
        return Far(packed(folder / "out"), socket.gethostname())
    except NufedError as error:
        return error
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"nufed-cell-{socket.gethostname()}-"


def _remove_left_over() -> None:
    """Remove the folders of tasks whose process on this node was ended."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        number = folder.name.removeprefix(_prefix()).partition("-")[0]
        if number.isdecimal() and not is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def source_file(cell: Cell) -> str | None:
    """Return the path of the file that a cell's data come from, if it is given from the working folder down."""
    kind, _, argument = cell.config.data.source.partition(":")
    path = PurePosixPath(argument.partition("?")[0])
    if kind not in ("npz", "csv", "parquet") or path.is_absolute() or ".." in path.parts:
        return None
    return str(path)


def read_source(path: str) -> bytes | None:
    """Return the content of a file that runs are to read; None leaves it to them to say what is wrong with it.

    Raises:
        RunError: it is larger than `MOST_BYTES`.
    """
    try:
        if (size := Path(path).stat().st_size) > MOST_BYTES:
            raise RunError(
                f"Expected a file of at most {MOST_BYTES >> 20} MiB to be sent to the nodes, but {path} takes "
                f"{size >> 20} MiB. Put it on every node, and give its path from the root."
            )
        return Path(path).read_bytes()
    except OSError:
        return None


def packed(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by their paths in it.

    Raises:
        RunError: they are more than `MOST_BYTES`.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if (total := sum(path.stat().st_size for path in paths)) > MOST_BYTES:
        raise RunError(
            f"Expected a run's files to be sent back to take at most {MOST_BYTES / 2**20:.0f} MiB, but they take "
            f"{total / 2**20:.0f} MiB. Run the suite on one machine, with --jobs N."
        )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def unpacked(far: Far, cell: Cell, out: Path) -> Outcome:
    """Write a cell's files as if it had run here, and return what became of it.

    Raises:
        RunError: the node ran something else, or the files cannot be written.
    """
    own = f"{CELLS}/{cell.name}/"
    foreign = [name for name in far.files if not _is_within(name, own, f"tensorboard/{cell.name}/")]
    if foreign or f"{own}{DONE}" not in far.files:
        raise RunError(f"Expected the files of run {cell.name} from {far.host}, but others came. {_OTHER}")
    shutil.rmtree(out / own, ignore_errors=True)
    # Its record comes last: without it a folder is one that was cut short.
    for name in sorted(far.files, key=lambda name: name == f"{own}{DONE}"):
        path = out / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if name == f"{own}{DONE}":
            write_bytes(path, far.files[name])
        else:
            with writing(path):
                path.write_bytes(far.files[name])
    outcome = outcome_of(cell, out)
    if outcome is None:
        raise RunError(f"Expected run {cell.name} with its own options from {far.host}, but it has others. {_OTHER}")
    return outcome


def _is_within(name: str, *folders: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and name.startswith(folders)


def _gpus() -> int:
    """Return the GPUs that Ray is to give each cell: one where runs are to compute on one, else none.

    Raises:
        ConfigError: the device is a GPU of a certain number; Ray chooses which, and the run sees that one alone.
    """
    device = process_settings().device
    if device.startswith("cuda:"):
        raise ConfigError(f"Expected --device cuda with --jobs ray, which chooses the GPU of each run, got {device!r}.")
    return int(device == "cuda")


def _cpus() -> int:
    return process_settings().num_threads
