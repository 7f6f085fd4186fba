"""`nufed.personalize` and `nufed.evaluate`: fine-tune a model to somebody's examples, and judge it."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from nufed.client.keeping import Judged, Keep, Primary, choose, find_keep
from nufed.client.personal_model import predict as predictions_of
from nufed.client.verdict import judged_in_units
from nufed.common.config import MethodConfig, RunConfig
from nufed.common.data import SharedScaling
from nufed.common.data.array_trees import ArrayTree, first_array
from nufed.common.data.cast import cast_tree, input_name, target_name
from nufed.common.data.pool import Array, Table
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.raw import as_array, as_targets, check_inputs, image_layout
from nufed.common.data.target_scaling import TargetScaling, fit_target_scaling, target_scale
from nufed.common.errors import ConfigError, DataError, ModelError
from nufed.common.examples import Batch, Examples, TaskInfo
from nufed.common.meta.meta_sgd import STEP_SIZE
from nufed.common.meta.objective import fine_tune
from nufed.common.models import check_model
from nufed.common.models.heads import with_head
from nufed.common.params import Params, model_params
from nufed.common.rng import numpy_generator
from nufed.common.task import make_loss
from nufed.common.tasks.weights import weighted
from nufed.common.trees import one_tensor
from nufed.library.arguments import as_count, as_module, as_step_size
from nufed.library.examples_of_run import inputs_of_task, labelled, unlabelled
from nufed.library.turns import private

_ATTRIBUTE, _TASK = "nufed_fine_tuning", "nufed_task"
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class FineTuning:
    """How the clients of a run fine-tune its model.

    Attributes:
        step_size: of a step, where sizes are not learned.
        method: the run's method, which says what is adapted and how.
        sizes: the learned step size of each parameter (Meta-SGD); empty otherwise.
        target_scale: whose examples values to predict are scaled by: `none`, `run` or `local`.
        target_scaling: of the values that the model predicts; None where they are not scaled, or by nobody yet.
        preparation: of the inputs that the model takes; None where they are as they come.
        objects: the run's task by its name, where it was given in Python.
    """

    step_size: float
    method: MethodConfig
    sizes: Mapping[str, Tensor]
    target_scale: str = "none"
    target_scaling: TargetScaling | None = None
    preparation: Preparation | None = None
    objects: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
        loss: of the task, with targets as they were scaled; mean over examples.
        accuracy: share of examples, in [0, 1]; None for tasks without.
        num_examples: examples judged on.
        metrics: the task's usual metrics by name, in the units of the targets.
    """

    loss: float
    accuracy: float | None
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def _knowing_its_task(function: Function) -> Function:
    """Return a function of a model, which finds the task that the model's run was given in Python."""

    @functools.wraps(function)
    def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        known: FineTuning | None = getattr(model, _ATTRIBUTE, None)
        with private({}, known.objects) if known and known.objects else nullcontext():
            return function(model, *args, **kwargs)

    return cast("Function", call)


def remember_fine_tuning(  # noqa: PLR0913 - all of them are remembered
    model: nn.Module,
    config: RunConfig,
    sizes: Mapping[str, Tensor],
    task: TaskInfo,
    scaling: SharedScaling,
    objects: Mapping[str, Any],
) -> None:
    """Let a model know how the clients of its run fine-tune it; copies and pickles of the model know it too."""
    step_size, way = config.evaluation.adapt_lr or config.method.inner_lr, target_scale(config.data, task)
    given = {name: each for name, each in objects.items() if name == task.kind}
    known = FineTuning(step_size, config.method, dict(sizes), way, scaling.targets, scaling.inputs, given)
    setattr(model, _ATTRIBUTE, known)
    setattr(model, _TASK, task)


@_knowing_its_task
def personalize(  # noqa: PLR0913 - all but three by name
    model: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    steps: int = 5,
    lr: float | None = None,
    batch_size: int = 0,
    seed: int = 0,
    validation: tuple[Any, Any] | None = None,
    keep: Literal["best", "always"] = "best",
) -> nn.Module:
    """Return a copy of a model, fine-tuned to somebody's examples by plain gradient steps, in evaluation mode.

    What the run did to inputs and targets (`data.input-scale`, `data.target-scale`) is done to these examples too; the
    copy takes inputs and gives outputs in that scale, and `nufed.predict` undoes it. Where clients of the run keep
    something between rounds (`method.client-state`), the copy starts from the run's model, as a new client does.

    Args:
        model: `Run.model`, or any module without running statistics; not changed.
        inputs: [N, ...] array or tensor, or a tuple or dict of several, as the run had them; uint8 of three or more
            dimensions are pixels and scaled to [0, 1].
        targets: as the run had them; of a model of no run [N] whole numbers (classes from 0), or [N] or [N, K] floats
            (values to predict).
        steps: S, fine-tuning steps.
        lr: step size; None is the run's. A model of no run needs one.
        batch_size: examples in a step, drawn at random; 0 takes all of them.
        seed: of these draws.
        validation: (inputs, targets) of further examples, by whose loss the copy is compared with the model; None
            leaves it unjudged whether fine-tuning has made it better.
        keep: `best` returns an unchanged copy where fine-tuning has made it worse, with a warning; `always` the
            fine-tuned one, with a warning too.

    Raises:
        ConfigError: an option is out of range, or the model comes from no run and `lr` is missing.
        DataError: the examples are malformed, or do not fit the model.
        ModelError: the model does not fit, or fine-tuning diverged.

    Examples:
        >>> import nufed, torch
        >>> inputs, targets = torch.eye(4), torch.tensor([0, 1, 2, 3])
        >>> start = torch.nn.Linear(4, 4)
        >>> personal = nufed.personalize(start, inputs, targets, steps=50, lr=1.0)
        >>> nufed.evaluate(personal, inputs, targets).accuracy
        1.0
    """
    known: FineTuning | None = getattr(as_module(model), _ATTRIBUTE, None)
    steps, batch_size = as_count(steps, "steps"), as_count(batch_size, "batch_size")
    if lr is None and known is None:
        raise ConfigError(
            "lr is missing: the model comes from no run, which would say it. Give a step size, e.g. 0.05."
        )
    lr = None if lr is None else as_step_size(lr, "lr", above_zero=True)
    chosen = find_keep(keep)
    task, unscaled = _examples(model, inputs, targets, known)
    scaling = known.target_scaling if known else None
    if known and known.target_scale == "local":
        scaling = fit_target_scaling(one_tensor(unscaled.targets, "targets").numpy())
    examples = weighted(_ready(unscaled, scaling, model), task)
    method, sizes = (known.method, dict(known.sizes)) if known else (MethodConfig(), {})
    if sizes and lr is not None:
        raise ConfigError("lr contradicts the step sizes that the run has learned (Meta-SGD). Leave it out.")
    step_size = lr if lr is not None else known.step_size if known else 0.0
    personal = copy.deepcopy(model).eval()
    few = examples.take(torch.arange(min(2, len(examples)), device=examples.device))
    method = with_head(personal, method, few.inputs)
    start = {**model_params(personal), **{STEP_SIZE + name: size for name, size in sizes.items()}}
    batches = _batches(examples, steps, batch_size, seed)
    point: Params = {}
    for point in fine_tune(make_loss(personal, task), start, batches, step_size, method):  # noqa: B007 - the last one
        pass
    if not all(bool(torch.isfinite(tensor).all()) for tensor in point.values()):
        raise ModelError(
            f"expected fine-tuning to stay finite, but after {steps} steps of size {step_size:g} it is not; lower lr"
        )
    personal.load_state_dict(point, strict=False)
    setattr(personal, _TASK, getattr(model, _TASK, task))
    if known:
        setattr(personal, _ATTRIBUTE, replace(known, target_scaling=scaling))
    return personal if validation is None else _better(model, personal, validation, chosen)


def _better(model: nn.Module, personal: nn.Module, validation: tuple[Any, Any], keep: Keep) -> nn.Module:
    """Return a fine-tuned copy, or an unchanged one where that is better on validation examples; say which it is."""
    start = copy.deepcopy(model).eval()
    if known := getattr(personal, _ATTRIBUTE, None):
        setattr(start, _ATTRIBUTE, known)
    before, after = (evaluate(each, *validation) for each in (start, personal))
    shared, own = (Judged(found.loss, found.metrics) for found in (before, after))
    choice = choose(shared, own, after.num_examples, Primary(), keep)
    if choice.told:
        warnings.warn(f"{choice.told[0].upper()}{choice.told[1:]}.", stacklevel=4)
    return personal if choice.kept == "personal" else start


@_knowing_its_task
def evaluate(model: nn.Module, inputs: Any, targets: Any) -> Evaluation:
    """Return how good a model is on examples.

    Args:
        model: judged in evaluation mode; not changed.
        inputs: [N, ...], as `personalize` takes them.
        targets: likewise.

    Raises:
        DataError: the examples are malformed, or do not fit the model.
        ModelError: the model does not take such inputs.

    Examples:
        >>> import nufed, torch
        >>> nufed.evaluate(torch.nn.Linear(2, 1), torch.zeros(3, 2), torch.zeros(3)).num_examples
        3
    """
    known: FineTuning | None = getattr(as_module(model), _ATTRIBUTE, None)
    task, unscaled = _examples(model, inputs, targets, known)
    examples = _ready(unscaled, _scaling_of(known), model)
    still = copy.deepcopy(model).eval()
    found = judged_in_units(still, task, model_params(still), examples, _scaling_of(known))
    loss = found.pop("loss")
    return Evaluation(loss, found.get("accuracy"), len(examples), found)


@_knowing_its_task
def predict(model: nn.Module, inputs: Any) -> Array:
    """Return a model's predictions: probabilities, rates, or values in the unit of the targets, [N, ...].

    Args:
        model: `Run.model`, what `personalize` returns, or any module; used in evaluation mode and not changed.
        inputs: [N, ...], as `personalize` takes them.

    Raises:
        ConfigError: the run scaled targets by each client's own examples, and the model is not personal yet.
        DataError: the inputs are malformed.
        ModelError: the model does not take such inputs.

    Examples:
        >>> import nufed, torch
        >>> nufed.predict(torch.nn.Linear(2, 1), [[0.0, 1.0], [1.0, 1.0]]).shape
        (2, 1)
    """
    known: FineTuning | None = getattr(as_module(model), _ATTRIBUTE, None)
    like, task = next(model.parameters(), torch.zeros(0)), getattr(model, _TASK, None)
    rows: ArrayTree = _rows_of_run(task, inputs, known) if task else _rows(inputs, known)
    if not task:
        shape = first_array(rows).shape[1:]
        width = _num_outputs(model, shape, like)
        task = TaskInfo("regression", shape, width, target_shape=(width,))
    still, scaling = copy.deepcopy(model).eval(), _scaling_of(known)
    on_device = unlabelled(task, rows, like.dtype).to(like.device).inputs
    predictions: Array = predictions_of(still, task, model_params(still), on_device, scaling).cpu().numpy()
    return predictions


def _scaling_of(known: FineTuning | None) -> TargetScaling | None:
    """Return how the values that a model predicts are scaled.

    Raises:
        ConfigError: by a client's own examples, and the model has seen none.
    """
    if known and known.target_scale == "local" and known.target_scaling is None:
        raise ConfigError(
            "the run scales targets by each client's own examples, and this model has seen none. Call "
            "nufed.personalize first; steps=0 leaves the model as it is."
        )
    return known.target_scaling if known else None


def _ready(examples: Examples, scaling: TargetScaling | None, model: nn.Module) -> Examples:
    """Return examples with scaled targets, of the model's type and on its device."""
    like = next(model.parameters(), torch.zeros(0))
    if scaling:
        examples = replace(examples, targets=scaling.apply(one_tensor(examples.targets, "targets")))
    inputs, targets = (
        cast_tree(tree, like.dtype, name)
        for tree, name in ((examples.inputs, input_name), (examples.targets, target_name))
    )
    return replace(examples, inputs=inputs, targets=targets).to(like.device)


def _rows(inputs: Any, known: FineTuning | None) -> Array:
    """Return inputs as the model takes them."""
    rows = image_layout(as_array(inputs, "inputs"))
    check_inputs(rows, "inputs")
    if known and known.preparation:
        if rows.ndim != 2 or rows.shape[1] != len(known.preparation.fill):
            raise DataError(
                f"expected inputs [N, {len(known.preparation.fill)}], as the run had them, but got shape "
                f"{list(rows.shape)}; give the same numbers in the same order"
            )
        return known.preparation.apply(rows)
    return rows


def _rows_of_run(task: TaskInfo, inputs: Any, known: FineTuning | None) -> ArrayTree:
    """Return inputs as the model of a run takes them."""
    rows = inputs_of_task(task, inputs)
    return known.preparation.apply(first_array(rows)) if known and known.preparation else rows


def _examples(model: nn.Module, inputs: Any, targets: Any, known: FineTuning | None) -> tuple[TaskInfo, Examples]:
    """Return what the examples are for, checked against the model, and the examples, targets unscaled."""
    task: TaskInfo | None = getattr(model, _TASK, None)
    like, is_scaled = next(model.parameters(), torch.zeros(0)), known is not None and known.target_scale != "none"
    if task:
        check_model(model, task)
        dtype = torch.float64 if is_scaled else like.dtype
        return task, labelled(task, _rows_of_run(task, inputs, known), targets, dtype)
    kind, labels = as_targets(as_array(targets, "targets"), "targets")
    rows = _rows(inputs, known)
    if len(rows) != len(labels) or not len(rows):
        raise DataError(
            f"expected as many targets as inputs, and at least one, but got {len(labels)} and {len(rows)}; give every "
            "example one target"
        )
    num_outputs = _num_outputs(model, rows.shape[1:], like)
    largest = int(labels.max()) + 1 if kind == "classification" else labels.shape[1]
    if largest > num_outputs or (kind == "regression" and largest != num_outputs):
        what = "class numbers below" if kind == "classification" else "values per example as many as the model's"
        raise DataError(
            f"expected {what} {num_outputs} outputs, but got {largest - (kind == 'classification')}; give the targets "
            "that the model was trained for"
        )
    task = TaskInfo(kind, rows.shape[1:], num_outputs)
    check_model(model, task)
    return task, Table(rows, labels).examples(np.arange(len(rows)), task, like.dtype)


@torch.no_grad()
def _num_outputs(model: nn.Module, input_shape: tuple[int, ...], like: Tensor) -> int:
    try:
        outputs = copy.deepcopy(model).eval()(torch.zeros(1, *input_shape).to(like))
        return int(outputs.shape[1])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise ModelError(
            f"expected a model that takes inputs [N, {', '.join(map(str, input_shape))}] and returns [N, K], but "
            f"{type(model).__name__} raised: {error}; give it the inputs that it was made for"
        ) from error


def _batches(examples: Examples, steps: int, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield a batch for each step: all examples, or seeded draws."""
    generator, available = numpy_generator(seed, "personalize"), len(examples)
    for _ in range(steps):
        if batch_size == 0:
            yield examples.as_batch()
            continue
        rows = generator.choice(available, batch_size, replace=batch_size > available, shuffle=False)
        yield examples.take(torch.from_numpy(rows).to(examples.device)).as_batch()
