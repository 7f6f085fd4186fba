"""A client's personal model: the run's final model, adapted to the client's support split, kept in a file of its own.

The file (safetensors) holds the parameters and, as JSON, all that is needed to use them and to repeat them: the run's
options, steps and step size, the client's name, how a table's columns are prepared, the hash of the model that it
was made of, and loss and accuracy before and after on the held-out test split. It holds no example and no label.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nufed.client.keeping import NOT_JUDGED, UNJUDGED, Choice, Judged, Keep, Kept, Primary, choose, find_keep, judged
from nufed.client.personalize import adapted_points
from nufed.client.record_cost import RecordCost
from nufed.client.record_privacy import known_cost
from nufed.client.workplace import Workplace
from nufed.common import __version__
from nufed.common.config import RunConfig, Scalar
from nufed.common.data.private.load import is_slice
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.private.rows import refusal, tell_here
from nufed.common.data.private.task import Column
from nufed.common.data.target_scaling import TargetScaling
from nufed.common.durable_file import read_metadata, read_tensors, remove_left_over, write_tensors, writing
from nufed.common.errors import ConfigError, ModelError, RunError, WireError
from nufed.common.examples import TaskInfo
from nufed.common.input_forms import task_from_json, task_to_json
from nufed.common.meta.objective import initial_params
from nufed.common.metrics import judging
from nufed.common.model_arrays import check_params
from nufed.common.models.frozen import check_frozen, frozen_hash
from nufed.common.params import Params, model_params
from nufed.common.rng import seeded_generators
from nufed.common.task import with_params
from nufed.common.tasks import find_task
from nufed.common.trees import Tree, first_leaf, split

PERSONAL_FORMAT = "nufed-personal-1"

_PREDICTED_AT_ONCE = 1024


@dataclass(frozen=True)
class PersonalModel:
    """A model adapted to one client.

    Attributes:
        params: after the last step.
        config: the run's options, with those of the adaptation that was made.
        task: what the model is for.
        client_id: whose it is.
        before: the model that the fine-tuning starts from, on the client's test split.
        after: the fine-tuned model, on the same examples.
        num_support: examples adapted to.
        num_test: examples judged on.
        base_hash: SHA-256 of the run's arrays.
        preparation: how a table's columns become inputs; None where nothing is changed.
        frozen: hash of the model's frozen part, which is not in the file; empty where everything is trained.
        target_scaling: how values to predict were scaled; None where they were not.
        columns: of the table, in the order of the inputs; empty where there is none.
        choice: whether `params` are the fine-tuned ones, or the shared model's because these are better.
        cost: what the client's records have cost in privacy; None where that is not accounted for.
    """

    params: Params
    config: RunConfig
    task: TaskInfo
    client_id: str
    before: Judged
    after: Judged
    num_support: int
    num_test: int
    base_hash: str
    preparation: Preparation | None = None
    frozen: str = ""
    target_scaling: TargetScaling | None = None
    columns: tuple[Column, ...] = ()
    choice: Choice = UNJUDGED
    cost: RecordCost | None = None

    @property
    def num_steps(self) -> int:
        """Return the number of fine-tuning steps made."""
        return self.config.evaluation.num_adapt_steps

    @property
    def step_size(self) -> float:
        """Return the step size of the fine-tuning."""
        return self.config.evaluation.adapt_lr or self.config.method.inner_lr


def personalize(place: Workplace, params: Mapping[str, Tensor], keep: Keep = "best") -> PersonalModel:
    """Return the model after S fine-tuning steps on the support split, judged before and after on the test split.

    Args:
        place: the client; its configuration says S, step size and batch size (`evaluation`).
        params: the run's model.
        keep: what is kept where the fine-tuned model is worse on the validation split than the one before.

    Raises:
        ModelError: the model does not fit the run's options, or adaptation diverges.
    """
    check_arrays(params, initial_params(model_params(place.model), place.config.method), place.model)
    points = adapted_points(place, params)
    start = point = next(points)
    for point in points:  # noqa: B007 - the last one is wanted
        pass
    num_steps = place.config.evaluation.num_adapt_steps
    choice = UNJUDGED
    if num_validation := len(place.data.validation):
        shared, own = judged(place, start, "validation", 0), judged(place, point, "validation", num_steps)
        choice = choose(shared, own, num_validation, primary_of(place), keep)
    personal = PersonalModel(
        params=point if choice.kept == "personal" else start,
        config=place.config,
        task=place.task,
        client_id=place.data.client_id,
        before=judged(place, start, "test", 0),
        after=judged(place, point, "test", num_steps),
        num_support=len(place.data.support),
        num_test=len(place.data.test),
        base_hash=hash_params(params),
        preparation=place.preparation,
        frozen=place.frozen,
        target_scaling=place.data.target_scaling,
        columns=place.columns,
        choice=choice,
    )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in point.values()):
        raise refusal(
            ModelError,
            f"expected fine-tuning to stay finite, but after {personal.num_steps} steps of size "
            f"{personal.step_size:g} it is not; lower the step size (--lr, evaluation.adapt-lr)",
        )
    return personal


def primary_of(place: Workplace) -> Primary:
    """Return what a client's models are compared by: the run's primary metric."""
    by = judging(place.config.evaluation, place.task)
    return Primary(by.primary, lower_is_better=by.looks[by.primary].better == "lower")


def personalize_after_run(
    place: Workplace, params: Mapping[str, Tensor], path: Path, keep: Keep = "best", cost: RecordCost | None = None
) -> PersonalModel:
    """Adapt the final model of a run and leave the personal model at `path`, whole or not at all.

    Raises:
        ModelError: as `personalize`.
        RunError: the file cannot be written.
    """
    personal = replace(personalize(place, params, keep), cost=cost)
    save_personal_model(path, personal)
    return personal


def keep_after_run(
    place: Workplace, params: Mapping[str, Tensor], path: Path, node_config: Mapping[str, Scalar]
) -> None:
    """Leave the personal model of a deployed client, and tell it where that is worse than the shared one.

    Raises:
        ModelError: as `personalize`.
        RunError: the file cannot be written.
    """
    keep, cost = find_keep(str(node_config.get("keep", "best"))), known_cost(place, node_config)
    personal = personalize_after_run(place, params, path, keep, cost)
    if personal.choice.told:
        tell_here("%s: %s", place.data.client_id, personal.choice.told)


def personal_path(node_config: Mapping[str, Scalar]) -> Path | None:
    """Return where a deployed client keeps its personal model; None where it keeps none.

    A client replaces its own personal model at the end of every run, and nothing else that may be there.

    Raises:
        ConfigError: the folder does not exist, or something else is at that path, which is better known before the run
            than after it.
    """
    if (given := node_config.get("personal-model")) is None:
        return None
    find_keep(str(node_config.get("keep", "best")))
    path = Path(str(given)).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(
            f"Expected --personal-model to name a file in a folder that exists, got {path}. Make the folder, or name "
            "another file."
        )
    if path.exists():
        _check_is_own(path, node_config)
    with writing(path):
        remove_left_over(path)
    return path


def _check_is_own(path: Path, node_config: Mapping[str, Scalar]) -> None:
    try:
        stored = read_metadata(path) if path.is_file() else {}
    except RunError:
        stored = {}
    if stored.get("format") != PERSONAL_FORMAT:
        raise ConfigError(
            f"--personal-model {path} exists and is no personal model, so that a run will not replace it. Name another "
            "file."
        )
    owner, name = stored.get("client"), node_config.get("client-id")
    if owner != name and not is_slice(str(node_config.get("data", ""))):
        raise ConfigError(
            f"--personal-model {path} is the personal model of {owner!r}, and this is client {name!r}, so that a run "
            "will not replace it. Name another file."
        )


def save_personal_model(path: Path, model: PersonalModel) -> None:
    """Write a personal model; a crash leaves the file as it was.

    Raises:
        RunError: the file cannot be written.
    """
    evaluation = model.config.evaluation
    metadata = {
        "format": PERSONAL_FORMAT,
        "version": __version__,
        "config": model.config.model_dump(by_alias=True),
        "task": task_to_json(model.task),
        "client": model.client_id,
        "steps": model.num_steps,
        "step_size": model.step_size,
        "batch_size": evaluation.adapt_batch_size,
        "before": model.before.to_json(),
        "after": model.after.to_json(),
        "num_support": model.num_support,
        "num_test": model.num_test,
        "base_sha256": model.base_hash,
        "preparation": model.preparation.to_json() if model.preparation else None,
        **({"frozen": model.frozen} if model.frozen else {}),
        "target_scaling": model.target_scaling.to_json() if model.target_scaling else None,
        "columns": [vars(column) for column in model.columns],
        **({"record_privacy": vars(model.cost)} if model.cost else {}),
        "kept": model.choice.kept,
        "validation": {
            "num_examples": model.choice.num_examples,
            "before": model.choice.before.to_json() if model.choice.before else None,
            "after": model.choice.after.to_json() if model.choice.after else None,
            "told": model.choice.told,
        },
    }
    write_tensors(path, model.params, metadata)


def load_personal_model(path: Path) -> PersonalModel:
    """Read a personal model back.

    Raises:
        RunError: the file is absent, torn or no personal model.
    """
    params, stored = read_tensors(path)
    if stored.get("format") != PERSONAL_FORMAT:
        raise RunError(
            f"Expected a personal model of format {PERSONAL_FORMAT} in {path}, but found {stored.get('format')!r}. "
            "Make one with `nufed personalize`."
        )
    try:
        return PersonalModel(
            params=params,
            config=RunConfig.parse(stored["config"]),
            task=task_from_json(stored["task"]),
            client_id=str(stored["client"]),
            before=Judged.from_json(stored["before"]),
            after=Judged.from_json(stored["after"]),
            num_support=int(stored["num_support"]),
            num_test=int(stored["num_test"]),
            base_hash=str(stored["base_sha256"]),
            preparation=Preparation.from_json(stored["preparation"]) if stored["preparation"] else None,
            frozen=str(stored.get("frozen", "")),
            target_scaling=TargetScaling.from_json(stored.get("target_scaling")),
            columns=tuple(_column(column) for column in stored.get("columns", ())),
            cost=RecordCost(**stored["record_privacy"]) if "record_privacy" in stored else None,
            choice=_choice(stored.get("kept", "personal"), stored.get("validation", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"Expected the metadata of a personal model in {path}, but it is incomplete ({error!r}). Make the model "
            "again with `nufed personalize`."
        ) from error


@torch.no_grad()
def predict(
    model: nn.Module,
    task: TaskInfo,
    params: Mapping[str, Tensor],
    inputs: Tree,
    scaling: TargetScaling | None = None,
) -> Tensor:
    """Return class probabilities [N, K], predicted values [N, K], … of a model in evaluation mode.

    Args:
        model: its own parameters are not used.
        task: decides which of these.
        params: the model's parameters.
        inputs: as the task has them, N examples.
        scaling: of the values that the model predicts, which is undone; None for none.
    """
    outputs_of = with_params(model)
    with seeded_generators(
        0, (first_leaf(inputs).device,)
    ):  # for models that draw random numbers in evaluation mode too
        outputs = torch.cat([outputs_of(params, part) for part in split(inputs, _PREDICTED_AT_ONCE)])
    predictions = find_task(task).predictions(outputs)
    return scaling.undo(predictions) if scaling else predictions


def check_fits(params: Mapping[str, Tensor], model: nn.Module, frozen: str = "") -> None:
    """Refuse parameters that are not a finite model's of this architecture and this frozen part, given by its hash.

    Raises:
        ModelError: with the first difference.
    """
    check_frozen(frozen_hash(model), frozen, "the model in the file")
    check_arrays(params, model_params(model), model)


def check_arrays(arrays: Mapping[str, Tensor], reference: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse a run's arrays that differ from the reference's in names, shapes or types, or are not finite.

    Raises:
        ModelError: with the first difference.
    """
    try:
        check_params(arrays, reference, math.inf)
    except WireError as error:
        raise refusal(
            ModelError,
            f"expected the parameters of a {type(model).__name__} as the run's options describe it, but {error}; give "
            "the model and the options of one run",
        ) from error


def hash_params(params: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(params):
        tensor = params[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _column(stored: Mapping[str, Any]) -> Column:
    return Column(**{**stored, "categories": tuple(stored["categories"])})


def _choice(kept: Kept, stored: Mapping[str, Any]) -> Choice:
    """Return what was chosen; models of NuFed 0.2 chose nothing."""
    before, after = (Judged.from_json(stored[name]) if stored.get(name) else None for name in ("before", "after"))
    return Choice(kept, before, after, int(stored.get("num_examples", 0)), str(stored.get("told", NOT_JUDGED)))
