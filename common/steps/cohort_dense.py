"""The kernel of fully connected networks: gradients and Hessian-vector products of m clients by hand.

Layer l computes z_l = a_{l-1} W_lᵀ + b_l and a_l = φ_l(z_l), with a_0 the input and z_L the output. The backward pass
gives δ_l = ∂f/∂z_l, so that ∇W_l = δ_lᵀ a_{l-1} and ∇b_l = Σ δ_l. A Hessian-vector product is the derivative of that
along v = (V, c), written R{·} (Pearlmutter, Neural Computation 1994):

    R{z_l} = a_{l-1} V_lᵀ + c_l + R{a_{l-1}} W_lᵀ          R{a_l} = φ'(z_l) R{z_l}
    R{δ_{l-1}} = (R{δ_l} W_l + δ_l V_l) φ' + (δ_l W_l) φ'' R{z_{l-1}}
    R{∇W_l} = R{δ_l}ᵀ a_{l-1} + δ_lᵀ R{a_{l-1}}

Every product is one batched matrix product over the clients, and updates of the form w - α g are part of it.

One client alone may come without the leading dimension m (`nufed.common.steps.dense_steps`): products of matrices have
less overhead than batched products of one matrix each. All that is said of [m, ...] then holds of [...].
"""

from collections.abc import Collection, Sequence
from typing import Self

import torch
from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.params import Params
from nufed.common.steps.cohort_kernel import CohortBatch, Stacked
from nufed.common.steps.dense_layers import DenseLayer
from nufed.common.tasks import find_task
from nufed.common.trees import one_tensor


class _Buffers:
    """Hands out memory for what a step leaves behind; holds it for the next step.

    Weights of several clients are megabytes, which the allocator of the C library returns to the system at once; to
    have them mapped in anew in each step takes as long as the products that fill them.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
        self._lent: list[Tensor] = []

    def like(self, tensor: Tensor) -> Tensor:
        """Return memory of the tensor's shape and type, of any content."""
        free = self._free.get((tensor.shape, tensor.dtype))
        self._lent.append(free.pop() if free else torch.empty_like(tensor))
        return self._lent[-1]

    def take_back(self) -> None:
        """Make all that was handed out available again."""
        for tensor in self._lent:
            self._free.setdefault((tensor.shape, tensor.dtype), []).append(tensor)
        self._lent.clear()


class DenseKernel:
    """Computes losses of m dense networks at once; holds their layers and what their outputs mean.

    Attributes:
        layers: from the input to the output.
    """

    takes_padding = True

    def __init__(self, layers: Sequence[DenseLayer], task: TaskInfo) -> None:
        """Serve models of these layers."""
        self.layers = tuple(layers)
        self._task, self._is_classification = task, find_task(task).by_hand == "cross-entropy"
        self._buffers: _Buffers | None = None

    def start_step(self) -> None:
        """Begin a step, in which what earlier tapes returned is overwritten; without such calls nothing is."""
        if self._buffers is None:
            self._buffers = _Buffers()
        self._buffers.take_back()

    def split(self, number: int) -> tuple["DenseKernel", "DenseKernel"]:
        """Return the kernels of the first layers, whose outputs are a_l, and of those above, whose inputs these are."""
        return DenseKernel(self.layers[:number], self._task), DenseKernel(self.layers[number:], self._task)

    def lowest(self, names: Collection[str]) -> int:
        """Return the number of the first layer that has one of these parameters."""
        return next(number for number, layer in enumerate(self.layers) if {*layer.names} & {*names})

    def tape(
        self, params: Stacked, batch: CohortBatch, *, curvature: bool, moved: Collection[str] | None = None
    ) -> "DenseTape":
        """Evaluate the losses at `params`, forward, and backward down to the first layer that is needed."""
        tape = DenseTape.forward(self.layers, params, batch, is_classification=self._is_classification)
        tape.moved = moved
        tape.backward(0 if curvature or moved is None else self.lowest(moved), keep_products=curvature)
        tape.buffers = self._buffers
        return tape

    def outputs(self, params: Stacked, inputs: Tensor) -> Tensor:
        """Return the networks' outputs [m, B, K] for inputs [m, B, ...]."""
        current = inputs.flatten(2)
        for layer in self.layers:
            current = _linear(params, layer, current)
            current = layer.activation.value(current) if layer.activation else current
        return current


class DenseTape:
    """One forward and backward pass; holds activations a_l, slopes φ'(z_l), deltas δ_l and, for `contract`, δ_l W_l.

    Attributes:
        buffers: where results are put; None for new memory.
        moved: names of the parameters that `descend` moves; None for all.
    """

    buffers: _Buffers | None = None
    moved: Collection[str] | None = None

    def __init__(self, layers: tuple[DenseLayer, ...], params: Stacked, batch: CohortBatch) -> None:
        """Start an empty tape."""
        self._layers, self._params = layers, params
        self._sums: list[Tensor] = []  # z_1 … z_L
        self._inputs, self._targets, self._weights = one_tensor(batch.inputs), one_tensor(batch.targets), batch.weights
        self._values: list[Tensor] = [_flat(self._inputs, self._weights)]  # a_0 … a_{L-1}
        self._slopes: list[Tensor] = []  # φ'(z_1) … φ'(z_{L-1})
        self._deltas: list[Tensor] = []  # δ_1 … δ_L
        self._back: list[Tensor] = []  # δ_l W_l for l = 2 … L
        self._probabilities: Tensor | None = None

    @classmethod
    def forward(
        cls, layers: tuple[DenseLayer, ...], params: Stacked, batch: CohortBatch, *, is_classification: bool
    ) -> Self:
        """Return a tape with the forward pass on it."""
        tape = cls(layers, params, batch)
        for layer in layers:
            tape._sums.append(_linear(params, layer, tape._values[-1]))
            if layer.activation:
                tape._values.append(layer.activation.value(tape._sums[-1]))
                tape._slopes.append(layer.activation.slope(tape._sums[-1], tape._values[-1]))
        if is_classification:
            tape._probabilities = _softmax(tape._sums[-1])
        return tape

    def backward(self, lowest: int = 0, *, keep_products: bool) -> None:
        """Add the deltas of the layers from number `lowest` on."""
        delta = self._output_error()
        self._deltas.append(delta)
        for number in range(len(self._layers) - 1, lowest, -1):
            back = _product(delta, self._params[self._layers[number].weight])
            slope = self._slopes[number - 1]
            if keep_products:
                self._back.append(back)
                delta = back * slope
            else:
                delta = back.mul_(slope)
            self._deltas.append(delta)
        self._deltas.reverse()
        self._back.reverse()

    def losses(self) -> Tensor:
        """Return f_i, [m]."""
        outputs, targets, weights = self._sums[-1], self._targets, self._weights
        if self._probabilities is None:
            each = 0.5 * (outputs - _flat(targets, weights)).square().sum(-1)
        else:
            each = outputs.logsumexp(-1) - outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return (each * weights).sum(-1)

    def gradient(self) -> Params:
        """Return ∇f_i."""
        result: Params = {}
        for layer, delta, value in zip(self._layers, self._deltas, self._values, strict=True):
            into = self._memory_like(self._params[layer.weight])
            result[layer.weight] = _product(delta.mT, value, into)
            if layer.bias:
                result[layer.bias] = delta.sum(-2)
        return result

    def descend(self, step_size: float) -> Params:
        """Return x_i - step_size ∇f_i of what is moved, and the rest as it is."""
        result = {name: self._params[name] for layer in self._layers for name in layer.names}
        lowest = len(self._layers) - len(self._deltas)
        for layer, delta, value in zip(self._layers[lowest:], self._deltas, self._values[lowest:], strict=True):
            weight = self._params[layer.weight]
            if self._moves(layer.weight):
                into = self._memory_like(weight)
                result[layer.weight] = _plus_product(weight, delta.mT, value, -step_size, into)
            if layer.bias and self._moves(layer.bias):
                result[layer.bias] = torch.sub(self._params[layer.bias], delta.sum(-2), alpha=step_size)
        return result

    def _moves(self, name: str) -> bool:
        return self.moved is None or name in self.moved

    def input_gradient(self) -> Tensor:
        """Return ∂f_i/∂a_0, [m, B, width of the input]."""
        return _product(self._deltas[0], self._params[self._layers[0].weight])

    def contract(self, direction: Params, step_size: float, onto: Params | None = None) -> Params:
        """Return onto_i - step_size ∇²f_i v_i, in the memory of `onto`, which is v itself where it is None.

        Args:
            direction: v; 0 for parameters that it lacks.
            step_size: that the product is multiplied by.
            onto: has all parameters; its tensors may be those of `direction`.
        """
        result = direction if onto is None else onto
        direction = self._of_whole_layers(direction)
        sums, values = self._forward_along(direction)
        delta = self._output_error_along(sums[-1])
        for number in range(len(self._layers) - 1, -1, -1):
            layer, above, own_delta = self._layers[number], delta, self._deltas[number]
            weight, into = direction.get(layer.weight), result[layer.weight]
            if number:  # what goes down reads v before it is changed
                below = _product(above, self._params[layer.weight])
                if weight is not None:
                    _add_product(below, own_delta, weight)
                delta = below.mul_(self._slopes[number - 1])
                moved, moved_value = sums[number - 1], values[number - 1]
                if moved is not None and (bend := self._bend(number - 1)) is not None:
                    delta.addcmul_(bend.mul_(self._back[number - 1]), moved)
                if moved_value is not None:
                    _add_product(into, own_delta.mT, moved_value, -step_size)
            _add_product(into, above.mT, self._values[number], -step_size)
            if layer.bias:
                result[layer.bias].sub_(above.sum(-2), alpha=step_size)
        return result

    def num_bytes(self) -> int:
        """Return the bytes that the tape keeps alive beside the parameters and the batch."""
        kept = (*self._sums, *self._values, *self._slopes, *self._deltas, *self._back)
        if self._probabilities is not None:
            kept = (*kept, self._probabilities)
        sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
        sizes.pop(self._inputs.untyped_storage().data_ptr(), None)
        return sum(sizes.values())

    def _memory_like(self, weight: Tensor) -> Tensor | None:
        return self.buffers.like(weight) if self.buffers else None

    def _of_whole_layers(self, direction: Params) -> Params:
        """Return the direction with zeros for what it lacks of layers that it has something of."""
        lacking = {
            name: torch.zeros_like(self._params[name])
            for layer in self._layers
            for name in layer.names
            if name not in direction and not direction.keys().isdisjoint(layer.names)
        }
        return {**direction, **lacking} if lacking else direction

    def _forward_along(self, direction: Stacked) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return R{z_1} … R{z_L} and R{a_1} … R{a_{L-1}}, None where nothing moves; the inputs do not."""
        sums: list[Tensor | None] = []
        values: list[Tensor | None] = []
        for number, layer in enumerate(self._layers):
            below = values[-1] if values else None
            moved = None
            if layer.weight in direction:
                moved = _linear(direction, layer, self._values[number])
                if below is not None:
                    _add_product(moved, below, self._params[layer.weight].mT)
            elif below is not None:
                moved = _product(below, self._params[layer.weight].mT)
            sums.append(moved)
            if layer.activation:
                values.append(None if moved is None else moved * self._slopes[number])
        return sums, values

    def _bend(self, number: int) -> Tensor | None:
        activation = self._layers[number].activation
        if activation is None or activation.bend is None:
            return None
        return activation.bend(self._sums[number], self._values[number + 1], self._slopes[number])

    def _output_error(self) -> Tensor:
        """Return δ_L."""
        weights = self._weights.unsqueeze(-1)
        if self._probabilities is None:
            return (self._sums[-1] - _flat(self._targets, self._weights)).mul_(weights)
        targets = self._targets.unsqueeze(-1)
        minus_one = self._probabilities.new_full((), -1.0).expand(targets.shape)
        return self._probabilities.scatter_add(-1, targets, minus_one).mul_(weights)

    def _output_error_along(self, moved: Tensor | None) -> Tensor:
        """Return R{δ_L} for R{z_L}."""
        if moved is None:
            raise AssertionError("a direction has a layer at least")
        weights = self._weights.unsqueeze(-1)
        if self._probabilities is None:
            return moved * weights
        scaled = self._probabilities * moved
        return scaled.addcmul_(self._probabilities, scaled.sum(-1, keepdim=True), value=-1).mul_(weights)


def _softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last dimension; torch's own is slow where that is as short as a list of classes."""
    powers = (scores - scores.amax(-1, keepdim=True)).exp_()
    return powers.div_(powers.sum(-1, keepdim=True))


def _linear(params: Stacked, layer: DenseLayer, inputs: Tensor) -> Tensor:
    weight = params[layer.weight].mT
    if layer.bias is None:
        return _product(inputs, weight)
    return _plus_product(params[layer.bias].unsqueeze(-2), inputs, weight)


def _flat(tensor: Tensor, weights: Tensor) -> Tensor:
    """Return the tensor with one dimension behind those of the examples."""
    return tensor.flatten(weights.dim())


def _product(left: Tensor, right: Tensor, into: Tensor | None = None) -> Tensor:
    if left.dim() == 2:
        return torch.mm(left, right, out=into)
    return torch.bmm(left, right, out=into)


def _plus_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0, into: Tensor | None = None) -> Tensor:
    if left.dim() == 2:
        return torch.addmm(total, left, right, alpha=scale, out=into)
    return torch.baddbmm(total, left, right, alpha=scale, out=into)


def _add_product(total: Tensor, left: Tensor, right: Tensor, scale: float = 1.0) -> None:
    """Add to `total` in place."""
    if left.dim() == 2:
        total.addmm_(left, right, alpha=scale)
    else:
        total.baddbmm_(left, right, alpha=scale)
