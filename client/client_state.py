"""What a method has a client keep between rounds (`method.client-state`), where it stays: at the client.

A deployed client has it in a file beside its memory of its examples (`--state`) or its personal model, which survives
the process; without either it lasts as long as the process, and the client says so. A simulated one has it in its
node's state. The file bears a checksum, and says which run, client and method it is of. Another run's is replaced when
this run first has something to keep; one that is damaged, or of this run and another model, is refused.

A server that goes on after a crash may ask for its last round again. So a deployed client keeps two versions, and
begins a round with the newest from before it.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from nufed.client.record_privacy import run_name
from nufed.client.split_memory import state_path
from nufed.client.workplace import Workplace
from nufed.common.client_states import RUN_ID, StateFile
from nufed.common.config import RunConfig, Scalar
from nufed.common.data.private.load import is_slice
from nufed.common.data.private.rows import refusal, tell_here
from nufed.common.errors import ConfigError, RunError, WireError
from nufed.common.meta.client_state import own_names
from nufed.common.model_arrays import arrays_to_params, check_params, params_to_arrays
from nufed.common.params import Params, trained_parameters
from nufed.common.settings import process_settings
from nufed.common.wire import LONGEST_HASH

ENDING, TRIAL_ENDING = ".client-state", ".trial-state"
"""Behind the whole name of the file that this one lies beside; trials of a search leave the state of runs alone."""

_KEPT = "client-state"
_VERSIONS = 2
_WORLD = float("inf")


def client_state_path(node_config: Mapping[str, Scalar], *, is_trial: bool = False) -> Path | None:
    """Return where a deployed client keeps its state; None where it has no file of its own."""
    beside = state_path(node_config)
    return beside.with_name(beside.name + (TRIAL_ENDING if is_trial else ENDING)) if beside else None


def check_state_file(place: Workplace, node_config: Mapping[str, Scalar]) -> None:
    """Refuse a file that is no client's state, where one is going to be kept; better known before a run than in it.

    A trial goes on in several parts, between which nothing but a file keeps what a client has.

    Raises:
        ConfigError: it is damaged, or another file, or a trial needs one and there is none.
    """
    if "data" not in node_config or place.config.method.client_state == "none":
        return
    if path := client_state_path(node_config, is_trial=place.is_trial):
        _read(path)
    elif place.is_trial:
        raise refusal(
            ConfigError,
            f"a trial of a search goes on in several parts, and this client has no file for what it keeps between them "
            f"(method.client-state={place.config.method.client_state}). Start it with --state FILE.",
        )


def kept_in_file(path: Path, place: Workplace, run_id: str = "") -> Params:
    """Return what a deployed client kept in the last round that it took part in, on this process's device.

    Args:
        path: of its file.
        place: the client.
        run_id: which run it must be of; empty for any.

    Raises:
        ConfigError: there is no such file, it is damaged, or of another client, run, method or model.
    """
    if not path.is_file():
        raise ConfigError(f"Expected what a client kept between rounds in {path}, but there is no such file. Name it.")
    found = _read(path)
    belongs = {"run": run_id, **_owner(place)} if run_id else _owner(place)
    if found is None or not found.versions:
        raise ConfigError(f"Expected what a client kept between rounds in {path}, but it kept nothing. Leave it out.")
    try:
        _check_fits(found, belongs, place)
    except WireError as error:
        raise ConfigError(
            f"Expected in {path} what {place.data.client_id!r} kept in this run, but {error}. Name that client's file, "
            "and give the name that it had in the run (--name)."
        ) from error
    return _here(found.versions[max(found.versions)])


class ClientState:
    """Holds what one client keeps, while a message is answered."""

    def __init__(self, place: Workplace, message: Message, context: Context) -> None:
        """Find what was kept.

        Raises:
            ConfigError: the file is damaged, or is of this run and another model.
        """
        self._place, self._context = place, context
        is_deployed = "data" in context.node_config
        self._num_versions = _VERSIONS if is_deployed else 1
        self._path = client_state_path(context.node_config, is_trial=place.is_trial) if is_deployed else None
        self._belongs = {"run": _run_id(message.content) or _options_hash(place.config), **_owner(place)}
        self._versions: dict[int, Params] = {}
        if place.config.method.client_state != "none":
            self._versions = self._from_file(self._path) if self._path else _from_node(context.state)
            if is_deployed and self._path is None and not is_slice(str(context.node_config["data"])):
                _tell_once(f"what {place.data.client_id} keeps between rounds ends with this process")

    def before(self, round_number: int) -> Params | None:
        """Return what was kept in the last round before one, on this process's device; None if there is nothing."""
        rounds = [number for number in self._versions if number < round_number]
        if not rounds:
            return None
        return _here(self._versions[max(rounds)])

    def keep(self, round_number: int, kept: Mapping[str, Tensor]) -> None:
        """Keep what a round has left, durably where there is a file, before anything of the round is sent.

        Raises:
            RunError: the file cannot be written.
        """
        earlier = sorted(number for number in self._versions if number < round_number)
        rounds = earlier[len(earlier) - (self._num_versions - 1) :]
        own = {name: tensor.detach().cpu() for name, tensor in kept.items()}
        self._versions = {**{number: self._versions[number] for number in rounds}, round_number: own}
        if self._path:
            StateFile(self._versions, self._belongs).write(self._path)
        else:
            _to_node(self._context.state, self._versions)

    def _from_file(self, path: Path) -> dict[int, Params]:
        if (found := _read(path)) is None:
            return {}
        if found.belongs.get("run") != self._belongs["run"]:
            _tell_once(f"{path} is of another run: this run starts anew, and replaces it")
            return {}
        try:
            _check_fits(found, self._belongs, self._place)
        except WireError as error:
            raise refusal(
                ConfigError,
                "this client's own state (method.client-state) is of this run, but of another client, method or model",
                "%s does not fit (%s). Name another --state file, or delete it to start anew.",
                path,
                error,
            ) from error
        return dict(found.versions)


def _read(path: Path) -> StateFile | None:
    if not path.exists():
        return None
    try:
        return StateFile.read(path)
    except (RunError, ValueError, KeyError) as error:
        raise refusal(
            ConfigError,
            "this client's own state (method.client-state) is damaged or another file; its log says which",
            "%s Delete %s to start anew, as a new client does.",
            error,
            path,
        ) from error


def _here(params: Params) -> Params:
    device = process_settings().device
    return {name: tensor.to(device) for name, tensor in params.items()}


def _owner(place: Workplace) -> dict[str, str]:
    return {"client": place.data.client_id, "state": place.config.method.client_state}


def _check_fits(found: StateFile, belongs: Mapping[str, str], place: Workplace) -> None:
    if other := [key for key, value in belongs.items() if found.belongs.get(key) != value]:
        raise WireError(f"it is of another {other[0]}")
    expected = dict(trained_parameters(place.model))
    expected = {name: expected[name] for name in own_names(expected, place.config.method)}
    for kept in found.versions.values():
        check_params(kept, expected, _WORLD)


def node_records(round_number: int, kept: Mapping[str, Tensor]) -> RecordDict:
    """Return a simulated node's state that has what its client kept in a round, and nothing else."""
    records = RecordDict()
    _to_node(records, {round_number: dict(kept)})
    return records


def kept_round(state: RecordDict) -> int | None:
    """Return the round of what a simulated client keeps; None if it keeps nothing."""
    said = state.config_records.get(_KEPT)
    return max(_rounds(said)) if said else None


def kept_arrays(state: RecordDict) -> Params:
    """Return what a simulated client keeps."""
    versions = _from_node(state)
    return versions[max(versions)]


def _from_node(state: RecordDict) -> dict[int, Params]:
    said = state.config_records.get(_KEPT)
    return {number: arrays_to_params(state.array_records[f"{_KEPT}/{number}"]) for number in _rounds(said or {})}


def _to_node(state: RecordDict, versions: Mapping[int, Params]) -> None:
    for name in [name for name in state if name.startswith(f"{_KEPT}/")]:
        del state[name]
    state[_KEPT] = ConfigRecord({"rounds": list(versions)})
    for number, kept in versions.items():
        state[f"{_KEPT}/{number}"] = params_to_arrays(kept)


def _rounds(said: Mapping[str, object]) -> list[int]:
    rounds = said.get("rounds", [])
    return [int(number) for number in rounds] if isinstance(rounds, list) else []


def _run_id(content: RecordDict) -> str:
    """Return which run a server says a message is of; empty if it does not say."""
    said = [config[RUN_ID] for config in content.config_records.values() if RUN_ID in config]
    if said and not (isinstance(said[0], str) and len(said[0]) <= LONGEST_HASH):
        raise WireError(f"{RUN_ID} is refused: expected the name of a run, of at most {LONGEST_HASH} characters")
    return str(said[0]) if said else ""


def _options_hash(config: RunConfig) -> str:
    """Return a hash of a run's options that more rounds do not change."""
    return run_name(config.updated({"federation.num-rounds": 0}))


@lru_cache(maxsize=64)
def _tell_once(text: str) -> None:
    tell_here("%s", text)
