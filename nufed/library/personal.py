"""`nufed.personalize` and `nufed.evaluate`: fine-tune a model to somebody's examples, and judge it."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.data.pool import Table
from nufed.common.data.raw import as_array, as_targets, check_inputs, image_layout
from nufed.common.errors import ConfigError, DataError, ModelError
from nufed.common.examples import Batch, Examples, TaskInfo
from nufed.common.meta.meta_sgd import STEP_SIZE
from nufed.common.meta.objective import fine_tune
from nufed.common.models import check_model
from nufed.common.params import Params, model_params
from nufed.common.rng import numpy_generator
from nufed.common.task import judge, make_loss
from nufed.library.arguments import as_count, as_module, as_step_size

_ATTRIBUTE = "nufed_fine_tuning"


@dataclass(frozen=True)
class FineTuning:
    """How the clients of a run fine-tune its model.

    Attributes:
        step_size: of a step, where sizes are not learned.
        method: the run's method, which says what is adapted and how.
        sizes: the learned step size of each parameter (Meta-SGD); empty otherwise.
    """

    step_size: float
    method: MethodConfig
    sizes: Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """How good a model is.

    Attributes:
        loss: cross-entropy, or half the squared error summed over outputs; mean over examples.
        accuracy: share of examples, in [0, 1]; None for regression.
        num_examples: examples judged on.
    """

    loss: float
    accuracy: float | None
    num_examples: int


def remember_fine_tuning(model: nn.Module, config: RunConfig, sizes: Mapping[str, Tensor]) -> None:
    """Let a model know how the clients of its run fine-tune it; copies and pickles of the model know it too."""
    step_size = config.evaluation.adapt_lr or config.method.inner_lr
    setattr(model, _ATTRIBUTE, FineTuning(step_size, config.method, dict(sizes)))


def personalize(  # noqa: PLR0913 - all but three by name
    model: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    steps: int = 5,
    lr: float | None = None,
    batch_size: int = 0,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a model, fine-tuned to somebody's examples by plain gradient steps, in evaluation mode.

    Args:
        model: `Run.model`, or any module without running statistics; not changed.
        inputs: [N, ...] array or tensor; uint8 of three or more dimensions are pixels and scaled to [0, 1].
        targets: [N] whole numbers (classes from 0), or [N] or [N, K] floats (values to predict).
        steps: S, fine-tuning steps.
        lr: step size; None is the run's. A model of no run needs one.
        batch_size: examples in a step, drawn at random; 0 takes all of them.
        seed: of these draws.

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
    task, examples = _examples(model, inputs, targets)
    method, sizes = (known.method, dict(known.sizes)) if known else (MethodConfig(), {})
    if sizes and lr is not None:
        raise ConfigError("lr contradicts the step sizes that the run has learned (Meta-SGD). Leave it out.")
    step_size = lr if lr is not None else known.step_size if known else 0.0
    personal = copy.deepcopy(model).eval()
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
    return personal


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
    task, examples = _examples(as_module(model), inputs, targets)
    still = copy.deepcopy(model).eval()
    loss, accuracy = judge(still, task, model_params(still), examples.as_batch())
    return Evaluation(loss, accuracy, len(examples))


def _examples(model: nn.Module, inputs: Any, targets: Any) -> tuple[TaskInfo, Examples]:
    """Return what the examples are for, checked against the model, and the examples on its device."""
    kind, labels = as_targets(as_array(targets, "targets"), "targets")
    rows = image_layout(as_array(inputs, "inputs"))
    check_inputs(rows, "inputs")
    if len(rows) != len(labels) or not len(rows):
        raise DataError(
            f"expected as many targets as inputs, and at least one, but got {len(labels)} and {len(rows)}; give every "
            "example one target"
        )
    like = next(model.parameters(), torch.zeros(0))
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
    examples = Table(rows, labels).examples(np.arange(len(rows)), task, like.dtype)
    return task, examples.to(like.device)


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
