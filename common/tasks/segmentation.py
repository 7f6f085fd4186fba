"""A class for each pixel: cross-entropy, and beside it the Dice loss of the whole mask."""

from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.positions import ignored_number, mean_cross_entropies, one_hot, over_positions, smoothing_of
from nufed.common.tasks.targets import check_classes
from nufed.common.tasks.task import Task

_SMOOTH = 1.0  # pixels of each class that a mask without any is taken to have


def build(info: TaskInfo) -> Task:
    """Return the task for outputs [B, K, H, W] (scores) and targets [B, H, W] (class numbers).

    An example's loss is the mean cross-entropy of its pixels, plus `task.dice-weight` times 1 - the mean over classes
    of Dice's coefficient, of probabilities instead of decisions (Milletari, Navab, Ahmadi, 3DV 2016):

        (2 Σ p y + 1) / (Σ p + Σ y + 1).

    Pixels of `task.ignore-index` count in neither. Masks may have one dimension or three, as `target_shape` says.
    """
    num_dims, ignored, smoothing = len(info.target_shape), ignored_number(info), smoothing_of(info)
    dice_weight = float(dict(info.options).get("dice-weight", 1.0))

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        scores = outputs.movedim(-num_dims - 1, -1)
        found = mean_cross_entropies(scores, targets, num_dims, ignored=ignored, smoothing=smoothing)
        if not dice_weight:
            return found
        return found + dice_weight * (1 - _dice(scores, targets, num_dims, ignored))

    return Task(
        losses=losses,
        predictions=lambda outputs: outputs.softmax(-num_dims - 1),
        check_targets=lambda targets: check_classes(targets, info.num_outputs, info.target_shape, ignored),
        default_metrics=("dice", "iou", "accuracy"),
        primary_metric="dice",
        output_shape=(info.num_outputs, *info.target_shape),
        target_shape=info.target_shape,
        needs_float_targets=False,
    )


def _dice(scores: Tensor, targets: Tensor, num_dims: int, ignored: int) -> Tensor:
    counts = (targets != ignored).unsqueeze(-1)
    shares = scores.softmax(-1).where(counts, 0.0).movedim(-1, -num_dims - 1)
    truth = one_hot(targets, scores.shape[-1], scores).movedim(-1, -num_dims - 1)
    common, total = over_positions(shares * truth, num_dims), over_positions(shares + truth, num_dims)
    return ((2 * common + _SMOOTH) / (total + _SMOOTH)).mean(-1)
