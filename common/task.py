"""Losses: from a model and a task to a function of parameters and a batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nufed.common import trees
from nufed.common.examples import Batch, TaskInfo
from nufed.common.params import trained_parameters
from nufed.common.rng import GLOBAL_STATE, derive_seed, seeded_generators, seeded_torch
from nufed.common.tasks import Task, find_task
from nufed.common.traits import UNKNOWN, Traits
from nufed.common.trees import Tree

LossFn = Callable[[Mapping[str, Tensor], Batch], Tensor]
OutputsFn = Callable[[Mapping[str, Tensor], Tree], Tensor]


def call_model(model: nn.Module, inputs: Tree) -> Tensor:
    """Return a model's outputs: called with one tensor, the parts of a tuple, or those of a dict by their names.

    Of an output that has logits, as those of Hugging Face's models, these are taken.
    """
    if isinstance(inputs, Tensor):
        return logits_of(model(inputs))
    return logits_of(model(*inputs) if isinstance(inputs, tuple) else model(**inputs))


def logits_of(outputs: Any) -> Tensor:
    """Return what a model has returned, or the logits that are in it."""
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return cast("Tensor", outputs if found is None else found)


def with_params(model: nn.Module) -> OutputsFn:
    """Return `outputs(params, inputs)`: the model's outputs with other parameters in the place of its trained ones.

    What `torch.func.functional_call` does, at a tenth of its overhead: where the parameters live is looked up once.
    Buffers and frozen parameters are read in the precision of the parameters. The model's own parameters are back in
    place after each call, also when it raises. Threads take turns.
    """
    names = {id(tensor): name for name, tensor in trained_parameters(model).items()}
    places = [  # a shared parameter is read from several
        (names[id(tensor)], module._parameters, key)
        for module in model.modules()
        for key, tensor in module._parameters.items()
        if id(tensor) in names
    ]
    constants = [
        (table, key)
        for module in model.modules()
        for table in (module._buffers, module._parameters)
        for key, tensor in table.items()
        if tensor is not None and tensor.is_floating_point() and id(tensor) not in names
    ]

    def outputs(params: Mapping[str, Tensor], inputs: Tree) -> Tensor:
        with GLOBAL_STATE:
            new: list[tuple[dict[str, Any], str, Tensor]] = [(table, key, params[name]) for name, table, key in places]
            if constants and new:
                new += _in_precision(constants, new[0][2].dtype)
            own = [table[key] for table, key, _ in new]
            try:
                for table, key, tensor in new:
                    table[key] = tensor
                return call_model(model, inputs)
            finally:
                for (table, key, _), tensor in zip(new, own, strict=True):
                    table[key] = tensor

    return outputs


def _in_precision(
    constants: list[tuple[dict[str, Any], str]], dtype: torch.dtype
) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return the tensors that are not of a type, in that type."""
    return [(table, key, table[key].to(dtype)) for table, key in constants if table[key].dtype != dtype]


@dataclass(frozen=True)
class ModelLoss:
    """A model's loss on a task; equal for the same model and task, so that what is compiled for one serves the other.

    Attributes:
        model: its own parameters are not used.
        task: what the loss is.
        outputs: the model's outputs as a function of parameters and inputs.
        traits: what else the model does.
    """

    model: nn.Module
    task: TaskInfo
    outputs: OutputsFn = field(compare=False, repr=False)
    traits: Traits = field(default=UNKNOWN, compare=False)

    @cached_property
    def meaning(self) -> Task:
        """Return what the outputs mean."""
        return find_task(self.task)

    def __call__(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the loss, a scalar tensor; what the model draws follows `batch.mask_seed`.

        Of more than `traits.most_rows` examples it is computed in parts, and can be differentiated once.
        """
        parts = self.parts(batch)
        if len(parts) == 1:
            return self.meaning.loss(self.outputs_of(params, batch), batch.targets, batch.weights)
        total: Tensor = _InParts.apply(self, parts, tuple(params), *params.values())
        return total

    def outputs_of(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the outputs [B, …]; what the model draws follows `batch.mask_seed`."""
        if batch.mask_seed is None and not self.traits.math_attention:
            return self.outputs(params, batch.inputs)
        with self._surroundings(batch):
            return self.outputs(params, batch.inputs)

    @contextmanager
    def _surroundings(self, batch: Batch) -> Iterator[None]:
        """Seed what the model draws from, and choose how attention is computed; both are global, so threads wait."""
        with GLOBAL_STATE, ExitStack() as stack:
            if batch.mask_seed is not None:
                seeded = seeded_torch if self.traits.draws == "torch" else seeded_generators
                stack.enter_context(seeded(batch.mask_seed, (trees.first_leaf(batch.inputs).device,)))
            if self.traits.math_attention:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    def parts(self, batch: Batch) -> list[Batch]:
        """Return the batch in parts that fit the memory; what each draws has a seed of its own."""
        most = self.traits.most_rows
        if most is None or len(batch) <= most:
            return [batch]
        seed = batch.mask_seed
        inputs, targets = trees.split(batch.inputs, most), trees.split(batch.targets, most)
        weights = [None] * len(inputs) if batch.weights is None else torch.split(batch.weights, most)
        return [
            Batch(own, wanted, None if seed is None else derive_seed(seed, "part", number), weight)
            for number, (own, wanted, weight) in enumerate(zip(inputs, targets, weights, strict=True))
        ]


def make_loss(model: nn.Module, task: TaskInfo, traits: Traits = UNKNOWN) -> ModelLoss:
    """Return `loss(params, batch)`, a scalar tensor; what the model draws follows `batch.mask_seed`."""
    return ModelLoss(model, task, with_params(model), traits)


@torch.no_grad()
def answers(loss: ModelLoss, params: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the outputs [B, ...] of a loss's model, which is in evaluation mode, and their mean loss, a scalar.

    More than `traits.most_rows` examples are evaluated in parts.
    """
    outputs = torch.cat([loss.outputs_of(params, part) for part in loss.parts(batch)])
    return outputs, loss.meaning.loss(outputs, batch.targets, batch.weights)


class _InParts(torch.autograd.Function):
    """The mean of the parts' losses, with its gradient computed part by part: no more than one part's graph is held."""

    @staticmethod
    def forward(ctx: Any, loss: ModelLoss, parts: list[Batch], names: tuple[str, ...], *tensors: Tensor) -> Tensor:
        """Return the loss; keep its gradient if there may be a backward pass."""
        point = {
            name: tensor.detach().requires_grad_(needed)
            for name, tensor, needed in zip(names, tensors, ctx.needs_input_grad[3:], strict=True)
        }
        wanted = [tensor for tensor in point.values() if tensor.requires_grad]
        num_examples, total = sum(map(len, parts)), tensors[0].new_zeros(())
        sums = [torch.zeros_like(tensor) for tensor in wanted]
        for part in parts:
            with torch.enable_grad():
                value = loss(point, part) * (len(part) / num_examples)
            total += value.detach()
            if wanted:
                torch._foreach_add_(sums, torch.autograd.grad(value, wanted))
        ctx.gradients = sums
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that were kept, times what comes from above."""
        kept = iter(ctx.gradients)
        return None, None, None, *[above * next(kept) if needed else None for needed in ctx.needs_input_grad[3:]]
