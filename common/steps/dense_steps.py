"""The inner step of fully connected networks by hand: the kernel of `nufed.common.steps.cohort_dense` for one client.

Equal to double backward up to rounding, without what surrounds its products: no graph, no modules, no lock.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nufed.common.examples import Batch, TaskInfo
from nufed.common.params import Params
from nufed.common.steps.cohort_dense import DenseKernel, DenseTape
from nufed.common.steps.cohort_kernel import CohortBatch
from nufed.common.steps.dense_layers import dense_layers, parameter_names
from nufed.common.steps.steps import PullBack, SizedPullBack, Steps, autograd_steps
from nufed.common.task import LossFn, ModelLoss
from nufed.common.tasks import find_task
from nufed.common.trees import first_leaf

PRECISIONS = (torch.float32, torch.float64)
PLAIN = (Tensor, nn.Parameter)

Covers = Callable[[Mapping[str, Tensor], Batch], bool]


def dense_steps(loss: LossFn, inner_lr: float) -> Steps | None:
    """Return the steps by hand, or None for a loss that is not that of a plain fully connected network.

    The model's layers, hooks and mode (training or evaluation) are read now. Batches with dropout masks, of other
    shapes than the task's, or in other precisions than float32 and float64 are computed by autograd.
    """
    if not isinstance(loss, ModelLoss) or (layers := dense_layers(loss.model, loss.task)) is None:
        return None
    covers = _coverage(frozenset(parameter_names(layers)), loss.task)
    return _either(covers, _by_hand(DenseKernel(layers, loss.task), inner_lr), autograd_steps(loss, inner_lr))


def _by_hand(kernel: DenseKernel, inner_lr: float) -> Steps:
    def record(params: Mapping[str, Tensor], batch: Batch, *, curvature: bool) -> DenseTape:
        size = len(batch)
        shares = first_leaf(batch.inputs).new_full((size,), 1 / size)
        return kernel.tape(params, CohortBatch(batch.inputs, batch.targets, shares, batch.weights), curvature=curvature)

    def contract(tape: DenseTape, direction: Params) -> Params:
        return tape.contract({name: tensor.clone() for name, tensor in direction.items()}, inner_lr)

    @torch.no_grad()
    def value_and_gradient(params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Params]:
        tape = record(params, batch, curvature=False)
        return tape.losses(), _in_order_of(params, tape.gradient())

    @torch.no_grad()
    def descend(params: Mapping[str, Tensor], batch: Batch) -> Params:
        return _in_order_of(params, record(params, batch, curvature=False).descend(inner_lr))

    @torch.no_grad()
    def linearize(params: Mapping[str, Tensor], batch: Batch) -> tuple[Params, PullBack]:
        tape = record(params, batch, curvature=True)
        pull_back = torch.no_grad()(lambda direction: contract(tape, direction))
        return _in_order_of(params, tape.descend(inner_lr)), SizedPullBack(pull_back, tape.num_bytes)

    @torch.no_grad()
    def pull_back(params: Mapping[str, Tensor], batch: Batch, direction: Params) -> Params:
        return contract(record(params, batch, curvature=True), direction)

    return Steps(inner_lr, value_and_gradient, descend, linearize, pull_back)


def _either(covers: Covers, ours: Steps, others: Steps) -> Steps:
    def of(params: Mapping[str, Tensor], batch: Batch) -> Steps:
        return ours if covers(params, batch) else others

    return Steps(
        ours.inner_lr,
        lambda params, batch: of(params, batch).value_and_gradient(params, batch),
        lambda params, batch: of(params, batch).descend(params, batch),
        lambda params, batch: of(params, batch).linearize(params, batch),
        lambda params, batch, direction: of(params, batch).pull_back(params, batch, direction),
    )


def _coverage(names: frozenset[str], task: TaskInfo) -> Covers:
    """Return whether a batch and parameters are such that the kernel computes what the model would."""
    classes = find_task(task).by_hand == "cross-entropy"

    def covers(params: Mapping[str, Tensor], batch: Batch) -> bool:
        inputs, targets = batch.inputs, batch.targets
        if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
            return False
        if batch.mask_seed is not None or params.keys() != names or inputs.dtype not in PRECISIONS:
            return False
        size = len(targets)
        if size == 0 or inputs.shape != (size, *task.input_shape):
            return False
        if classes:
            fits = targets.dtype == torch.int64 and targets.dim() == 1
        else:
            fits = targets.dtype == inputs.dtype and targets.shape == (size, task.num_outputs)
        are_plain = type(inputs) in PLAIN and type(targets) in PLAIN
        tensors = params.values()
        return fits and are_plain and all(type(each) in PLAIN and each.dtype == inputs.dtype for each in tensors)

    return covers


def _in_order_of(params: Mapping[str, Tensor], found: Params) -> Params:
    return {name: found[name] for name in params}
