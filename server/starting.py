"""Where a run begins: at the seeded model, at a trained model of an earlier run, or where a stopped run stands."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nufed.common.config import RunConfig
from nufed.common.durable_file import read_foreign_tensors, read_metadata
from nufed.common.errors import ModelError, RunError
from nufed.common.examples import TaskInfo
from nufed.common.meta.meta_sgd import split_step_sizes
from nufed.common.meta.objective import initial_params
from nufed.common.models import build_model
from nufed.common.models.frozen import check_frozen, frozen_hash, frozen_tensors, hash_of
from nufed.common.params import Params, model_params
from nufed.server.checkpoint import Checkpoint
from nufed.server.history import History
from nufed.server.resuming import resume_point
from nufed.server.shared_scales import check_shared_scales

_log = logging.getLogger("nufed.server.run")


@dataclass(frozen=True)
class StartingPoint:
    """Where a run begins, or goes on.

    Attributes:
        config: the run's options, with the hash of the model that it starts from.
        params: w_k.
        frozen: hash of the model's frozen part; empty where everything is trained.
        round: k, server updates done.
        history: sums and evaluations so far.
        server_state: what the server's optimizer remembers, and models that clients work on.
        at_work: who was at work when a buffered run was stopped (nufed.server.at_work).
        client_states: names the files of what simulated clients keep; None where nobody does.
    """

    config: RunConfig
    params: Params
    frozen: str
    round: int = 0
    history: History = field(default_factory=History)
    server_state: Mapping[str, Tensor] = field(default_factory=dict)
    at_work: Mapping[str, Any] = field(default_factory=dict)
    client_states: Mapping[str, list[Any]] | None = None


def starting_point(config: RunConfig, task: TaskInfo, resume: Path | None) -> StartingPoint:
    """Return where a run begins; what is noted where it goes on is logged.

    Args:
        config: the run's options.
        task: what the model must fit.
        resume: an earlier run's folder to go on in; None starts a new one.

    Raises:
        ConfigError: there is no model of that name, or privacy contradicts what the data would be scaled by.
        ModelError: the model cannot be built, or the trained one to start from is not like it.
        RunError: the folder to resume, or the file to start from, cannot be read or is not of this run.
    """
    check_shared_scales(config)
    point = resume_point(resume) if resume else None
    for note in point.notes if point else ():
        _log.warning("%s.", note)
    model = build_model(config.model, task, seed=config.seed)
    seeded = model_params(model)
    if point and point.checkpoint:
        start = StartingPoint(config, initial_params(seeded, config.method), frozen_hash(model))
        return _resumed(point.checkpoint, start, point.rounds_without_reply)
    if not config.model.init:
        return StartingPoint(config, initial_params(seeded, config.method), frozen_hash(model))
    path = Path(config.model.init).expanduser()
    trained, sizes = _trained(path, config)
    _check_names(path, trained, seeded, frozen_tensors(model))
    _check_frozen_part(path, trained, model_frozen=frozen_tensors(model), here=frozen_hash(model))
    params = initial_params({name: trained[name] for name in seeded}, config.method)
    if config.method.step_sizes != "fixed" and sizes:
        params = {**params, **{name: sizes[name] for name in params if name in sizes}}
    found = config.updated({"model.init-hash": hash_of({**trained, **sizes})})
    return StartingPoint(found, params, frozen_hash(model))


def _trained(path: Path, config: RunConfig) -> tuple[Params, Params]:
    """Return the arrays to start from: the model's, and learned step sizes by their names in a message."""
    tensors = read_foreign_tensors(path)
    found, expected = hash_of(tensors), config.model.init_hash
    if expected and found != expected:
        raise RunError(
            f"Expected {path} (model.init) to hold the model that the options were written with (BLAKE2b {expected}), "
            f"but it holds another ({found}). Put the file back, or leave model.init-hash out."
        )
    model, _ = split_step_sizes(tensors)
    return model, {name: tensor for name, tensor in tensors.items() if name not in model}


def _check_names(
    path: Path, trained: Mapping[str, Tensor], wanted: Mapping[str, Tensor], frozen: Mapping[str, Tensor]
) -> None:
    """Refuse arrays that are not a model's like this one, those of its frozen part apart."""
    advice = "give the model of a run with the same model and data options (model.init)"
    if missing := [name for name in wanted if name not in trained]:
        raise ModelError(
            f"expected the run's trained parameters in {path}, but {missing[0]!r} is missing (and {len(missing) - 1} "
            f"more); {advice}"
        )
    if strange := [name for name in trained if name not in wanted and name not in frozen]:
        raise ModelError(
            f"expected no other arrays than the model's in {path}, but found {strange[0]!r} (and {len(strange) - 1} "
            f"more); {advice}"
        )
    for name, tensor in wanted.items():
        got = trained[name]
        if got.shape != tensor.shape or got.dtype != tensor.dtype:
            raise ModelError(
                f"expected {name!r} as {tensor.dtype} of shape {list(tensor.shape)} in {path}, but got {got.dtype} of "
                f"shape {list(got.shape)}; {advice}"
            )
        if not bool(got.isfinite().all()):
            raise ModelError(f"expected finite numbers in {path}, but {name!r} has others; {advice}")


def _check_frozen_part(
    path: Path, trained: Mapping[str, Tensor], *, model_frozen: Mapping[str, Tensor], here: str
) -> None:
    """Refuse a model that was trained with another frozen part than the one that was built here."""
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        there = str(read_metadata(file).get("frozen") or "")
    except RunError:  # of another program, which says nothing of it
        there = ""
    if there:
        check_frozen(here, there, f"the model in {path}")
    for name, tensor in model_frozen.items():
        if name in trained and not bool((trained[name].to(tensor) == tensor).all()):
            raise ModelError(
                f"expected {path} to have the frozen part that was built here, but {name!r} differs; have every side "
                f"load the frozen part from it too: --frozen {path}"
            )


def _resumed(checkpoint: Checkpoint, initial: StartingPoint, rounds_without_reply: int) -> StartingPoint:
    config = initial.config
    shapes = {name: tensor.shape for name, tensor in initial.params.items()}
    if {name: tensor.shape for name, tensor in checkpoint.params.items()} != shapes:
        raise RunError(
            f"Expected a checkpoint of model {config.model.name!r} (hidden-sizes {config.model.hidden_sizes!r}), but "
            "its arrays differ. Resume with the options of the run's config.json."
        )
    check_frozen(initial.frozen, checkpoint.frozen, "the run to resume")
    history = History.from_json(checkpoint.history)
    totals = replace(history.totals, rounds_without_reply=rounds_without_reply)  # which NuFed 0.1 did not count
    history, state = replace(history, totals=totals), checkpoint.server_state
    at_work = checkpoint.history.get("at_work") or {}
    found = replace(initial, params=checkpoint.params, round=checkpoint.round, history=history, server_state=state)
    return replace(found, at_work=at_work, client_states=checkpoint.client_states)
