"""A connection to Ray: started on this machine alone, or a cluster that runs already and stays as it is.

To the nodes of a running cluster travel NuFed's and the user's code (`shipped_code`) and the settings `NUFED_*` of this
process. What else NuFed imports is installed on each of them, in the versions of this machine.
"""

import logging
import os
import re
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from nufed.common.errors import ConfigError, NufedError, RunError
from nufed.common.settings import environment
from nufed.deploy.simulation.shipped_code import copy_code

LOCAL, AUTO = "local", "auto"
PATIENCE = 10.0
"""Seconds in which an address must answer."""
NODE_PATIENCE = 180.0
"""Seconds in which a node must have unpacked the code that was sent and imported it."""

_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""No usage report to Ray's makers; actors without a GPU of their own see CUDA_VISIBLE_DEVICES as the user set it."""
_NICENESS = "RAY_worker_niceness"
"""Ray runs actors below all else on a machine; of a Ray of our own they have the priority of this process."""
_SAME_VERSIONS = {"flwr": "every part", "torch": "every part but what follows +", "numpy": "the first number"}
"""What must be equal here and on each node, for messages to be read and for the same bits."""
_OF_THIS_MACHINE = ("NUFED_OUT", "NUFED_GIVEN")
"""Settings that do not travel: folders that this process alone uses."""
_FOLDERS = ("NUFED_DATA_ROOT", "NUFED_FROZEN")
_CLUSTERS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_CLIENTS_ALIVE = "/ray.rpc.RayletDriver/ClusterInfo"


@dataclass(frozen=True)
class RayNode:
    """A machine of a cluster.

    Attributes:
        node_id: Ray's id of it.
        host: its address.
        resources: what it has in total, e.g. (("CPU", 8.0), ("GPU", 1.0)).
    """

    node_id: str
    host: str
    resources: tuple[tuple[str, float], ...] = field(compare=False)


@dataclass
class RayCluster:
    """A cluster that this process is connected to; holds which nodes were found fit.

    Attributes:
        address: as it was given.
        is_own: whether it was started for this process and ends with it.
        variables: environment of what runs on the nodes, beyond the nodes' own.
    """

    address: str
    is_own: bool
    variables: Mapping[str, str]
    _fit: set[str] = field(default_factory=set)
    _asked: dict[RayNode, Any] = field(default_factory=dict)

    def nodes(self) -> list[RayNode]:
        """Return the nodes that are alive, have processors and have what NuFed needs; those that are new are examined.

        The first look waits for what they answer; nodes that join later are left out until they have.

        Raises:
            RunError: a node lacks a package, has another version of it, or does not answer.
        """
        import ray

        alive = _with_cpus()
        if self.is_own:
            return alive
        is_first = not self._fit
        new = [node for node in alive if node.node_id not in self._fit and node not in self._asked]
        self._asked |= {node: _described(node) for node in new}
        for node, reference in list(self._asked.items()):
            if not is_first and not ray.wait([reference], timeout=0)[0]:
                continue
            problem = _problem(self._asked.pop(node))
            if not problem:
                self._fit.add(node.node_id)
            elif node in _with_cpus():  # it may have left in the meantime
                raise RunError(f"Expected node {node.host} of the Ray cluster {problem}")
        return [node for node in alive if node.node_id in self._fit]


def _with_cpus() -> list[RayNode]:
    import ray

    nodes = [
        RayNode(each["NodeID"], each["NodeManagerAddress"], tuple(sorted(each["Resources"].items())))
        for each in ray.nodes()  # type: ignore[no-untyped-call]
        if each["Alive"] and each["Resources"].get("CPU")
    ]
    return sorted(nodes, key=lambda node: (node.host, node.node_id))


@contextmanager
def ray_cluster(address: str = LOCAL, variables: Mapping[str, str] | None = None) -> Iterator[RayCluster]:
    """Connect to Ray inside the block.

    Of a running cluster nothing is shut down at the end but what this process has started in it. SIGTERM is
    treated as Ctrl-C inside the block, so that Ray's processes are taken leave of.

    Args:
        address: `local` starts Ray on this machine and ends it with the block; `auto` is the cluster that this machine
            is a node of, or that RAY_ADDRESS names; `HOST:PORT` a cluster that this machine is a node of;
            `ray://HOST:PORT` any.
        variables: environment of what runs there, beside the `NUFED_*` of this process.

    Raises:
        ConfigError: the address is none.
        RunError: there is no cluster, it does not answer, its versions are others, the code is too large, or Ray runs
            in this process already.
    """
    import ray

    where = _resolved(address)
    if ray.is_initialized():
        raise RunError("Expected no Ray in this process, but it is running. Call ray.shutdown() first.")
    if where == LOCAL:
        niceness = os.environ.get(_NICENESS, "0")
        surroundings = {**_QUIET, _NICENESS: niceness, "PYTHONPATH": _import_path(), **(variables or {})}
        with environment(surroundings), _handlers_kept() as interruptible, _ending():
            _init(address=LOCAL, include_dashboard=False)
            interruptible()
            yield RayCluster(address, True, variables or {})
        return
    _check_answers(where, address)
    sent = {**_settings(), **_QUIET, **(variables or {})}
    with (
        tempfile.TemporaryDirectory(prefix="nufed-code-", ignore_cleanup_errors=True) as code,
        environment(_QUIET),
        _handlers_kept() as interruptible,
        _ending(),
    ):
        copy_code(Path(code), Path.cwd())
        _join(where, address, {"working_dir": code, "env_vars": sent})
        interruptible()
        yield RayCluster(address, False, sent)


def _resolved(address: str) -> str:
    """Return `local`, HOST:PORT or ray://HOST:PORT."""
    from ray._private.services import canonicalize_bootstrap_address_or_die  # what ray.init does of `auto`

    where = os.environ.get("RAY_ADDRESS") or AUTO if address == AUTO else address
    if where == AUTO:
        try:
            return str(canonicalize_bootstrap_address_or_die(AUTO))
        except ConnectionError as error:
            raise RunError(
                "Expected a Ray cluster on this machine for the address auto, but none is running. Start one with "
                "`ray start`, give HOST:PORT or ray://HOST:PORT, or take --ray-address local."
            ) from error
    if where == LOCAL:
        return where
    port = re.fullmatch(r"(?:ray://)?(?:\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):(\d{1,5})", where)
    if port is None or not 0 < int(port[1]) < 2**16:
        raise ConfigError(
            f"Expected an address of a Ray cluster as local, auto, HOST:PORT (of `ray start`, usually 6379) or "
            f"ray://HOST:PORT (usually 10001), but got {where!r}. Correct it."
        )
    return where


def _check_answers(where: str, address: str) -> None:
    """Ask whoever is at an address whether it is Ray; ray.init would wait for minutes, out of reach of Ctrl-C.

    Raises:
        RunError: nobody answers in `PATIENCE` seconds, or it is something else.
    """
    if os.environ.get("RAY_USE_TLS") == "1":
        return  # Ray's own certificates would be needed
    is_client, target = where.startswith("ray://"), where.removeprefix("ray://")
    what = f"{address} ({where})" if address != where else where
    try:
        with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            method = channel.unary_unary(_CLIENTS_ALIVE if is_client else _CLUSTERS_ALIVE)
            method(b"", timeout=PATIENCE, wait_for_ready=False)
    except grpc.RpcError as error:
        code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
        if code == grpc.StatusCode.UNIMPLEMENTED:
            raise RunError(
                f"Expected Ray {'Client (ray://)' if is_client else 'itself'} at {what}, but another service answers "
                f"there. {'Its port is usually 10001' if is_client else 'Its port is usually 6379'}; for "
                f"{'the port of `ray start` leave out ray://' if is_client else 'Ray Client write ray://HOST:PORT'}."
            ) from error
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise RunError(
                f"Expected a Ray cluster at {what}, but nothing answered like one within {PATIENCE:g} s. Check host "
                "and port, that `ray start` runs there, and that no firewall is between; or use --engine local."
            ) from error


def _join(where: str, address: str, runtime_env: dict[str, Any]) -> None:
    """Connect to a running cluster.

    Raises:
        RunError: it refuses.
    """
    try:
        _init(address=where, runtime_env=runtime_env)
    except (Exception, SystemExit) as error:  # Ray raises what comes, and ends the program where it waits in vain
        if isinstance(error, NufedError):
            raise
        reason = " ".join(str(error).split())[:500]
        if "ersion mismatch" in reason:
            raise RunError(
                f"Expected the Ray cluster at {address} to have Ray and Python of this machine's versions, but: "
                f"{reason} Install the same ones here and there."
            ) from error
        if "client server failed" in reason:  # it looks for the head's agent at port 0 where Ray chooses the port
            raise RunError(
                f"Expected Ray Client at {address} to unpack this run's code, but it could not. Start the head with "
                "`ray start --head --runtime-env-agent-port PORT`, any free port outside 10002 to 19999: without it "
                "Ray Client of some versions looks in vain for what unpacks code."
            ) from error
        raise RunError(
            f"Expected to join the Ray cluster at {address}, but Ray refused: {reason}. HOST:PORT is for machines that "
            "are nodes of the cluster (`ray start --address HOST:PORT`); from elsewhere use ray://HOST:10001."
        ) from error


def _init(**options: Any) -> None:
    import ray

    with warnings.catch_warnings(), _logging_only_errors():
        warnings.simplefilter("ignore", FutureWarning)
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _logging_only_errors() -> Iterator[None]:
    """Keep Ray from telling on stderr what it does while it connects."""
    logger = logging.getLogger("ray")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if before != logging.NOTSET:
            logger.setLevel(before)


@contextmanager
def _ending() -> Iterator[None]:
    """Leave Ray at the end of the block; Ray ends with it where it was started here."""
    import ray

    try:
        yield
    finally:
        with suppress(ConnectionError):  # a cluster that has gone cannot be taken leave of
            ray.shutdown()


@contextmanager
def _handlers_kept() -> Iterator[Callable[[], None]]:
    """Take back Ray's handler of SIGTERM at the end; yield what makes of SIGTERM a Ctrl-C until then.

    A handler that the program itself has is put back at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = signal.getsignal(signal.SIGTERM)

    def interruptible() -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler if before == signal.SIG_DFL else before)

    try:
        yield interruptible
    finally:
        signal.signal(signal.SIGTERM, before)


def _settings() -> dict[str, str]:
    """Return the variables `NUFED_*` of this process that mean something elsewhere; folders from the root."""
    own = {name: value for name, value in os.environ.items() if name.startswith("NUFED_")}
    travelling = {name: value for name, value in own.items() if name not in _OF_THIS_MACHINE}
    return {name: str(Path(value).absolute()) if name in _FOLDERS else value for name, value in travelling.items()}


def _import_path() -> str:
    """Return what lets an actor on this machine import all that this process can."""
    return os.pathsep.join(dict.fromkeys(path or str(Path.cwd()) for path in sys.path))


def _described(node: RayNode) -> Any:
    """Return a reference to what a node has of the packages that NuFed needs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    names = tuple(_SAME_VERSIONS)

    def describe() -> tuple[dict[str, str], str]:  # an inner function travels by its code, not by the module's name
        import importlib
        import importlib.metadata

        versions = {}
        for name in names:
            try:
                versions[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                versions[name] = ""
        try:
            importlib.import_module("nufed.client.app")
        except ImportError as error:
            return versions, str(error)
        return versions, ""

    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    remote: Any = ray.remote(describe)
    return remote.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote()


def _problem(reference: Any) -> str:
    """Return what is wrong with a node, as the end of a sentence; empty if nothing is."""
    import ray

    try:
        theirs, missing = ray.get(reference, timeout=NODE_PATIENCE)
    except ray.exceptions.GetTimeoutError:
        return f"to have imported NuFed after {NODE_PATIENCE:g} s, but it has not. See whether it is overloaded."
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[-500:]
        return f"to run NuFed's code, but: {reason}. Mend the node, or take it out of the cluster."
    for name, rule in _SAME_VERSIONS.items():
        if _significant(name, theirs[name]) != _significant(name, ours := _own_version(name)):
            found = theirs[name] or "none"
            return f"to have {name} {ours} ({rule} counts), but it has {found}. Install the same version on all nodes."
    if missing:
        return f"to have all that NuFed needs installed, but: {missing}. Install it there."
    return ""


def _own_version(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)


def _significant(name: str, version: str) -> str:
    public = version.partition("+")[0]
    return public.partition(".")[0] if name == "numpy" else version if name == "flwr" else public
