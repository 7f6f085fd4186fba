"""The meta-gradient as other libraries compute it, each at its best settings, all on coupled batches.

`learn2learn` does not build on Python 3.11 and later (its source distribution carries C code of an old Cython), so its
algorithm stands here as its `MAML` class performs it: clone the parameters, `adapt` with `create_graph`, put
p - α g in the module. Its bookkeeping (copies of the module tree at each clone, recursion at each update) is left out,
so that the numbers here favor it.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor, nn

from benchmarks.problems import Problem
from nufed.common.meta.meta_gradient import MetaBatches

Compute = Callable[[], list[Tensor]]


def naive(problem: Problem, batches: MetaBatches, inner_lr: float) -> Compute:
    """Return autograd through the unrolled loop, with `torch.func.functional_call`."""
    model, start = problem.model, [tensor.detach().requires_grad_() for tensor in problem.params.values()]
    names = list(problem.params)

    def loss(point: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(
            torch.func.functional_call(model, dict(zip(names, point, strict=True)), (inputs,)), targets
        )

    def compute() -> list[Tensor]:
        point = start
        for batch in batches.inner:
            gradients = torch.autograd.grad(loss(point, batch.inputs, batch.targets), point, create_graph=True)
            point = [p - inner_lr * g for p, g in zip(point, gradients, strict=True)]
        return list(torch.autograd.grad(loss(point, batches.outer.inputs, batches.outer.targets), start))

    return compute


def learn2learn(problem: Problem, batches: MetaBatches, inner_lr: float) -> Compute:
    """Return learn2learn's algorithm: clone, then adapt with the parameters replaced inside the module."""
    model, start = problem.model, list(problem.model.parameters())
    slots = [(module._parameters, name) for module in model.modules() for name in module._parameters]
    slots = [(table, name) for table, name in slots if table[name] is not None]

    def put(point: Sequence[Tensor]) -> None:
        for (table, name), tensor in zip(slots, point, strict=True):
            table[name] = tensor  # type: ignore[assignment]

    def compute() -> list[Tensor]:
        point = [p.clone() for p in start]
        put(point)
        for batch in batches.inner:
            loss = F.cross_entropy(model(batch.inputs), batch.targets)
            gradients = torch.autograd.grad(loss, point, create_graph=True)
            point = [p - inner_lr * g for p, g in zip(point, gradients, strict=True)]
            put(point)
        loss = F.cross_entropy(model(batches.outer.inputs), batches.outer.targets)
        put(start)
        return list(torch.autograd.grad(loss, start))

    return compute


def higher(problem: Problem, batches: MetaBatches, inner_lr: float) -> Compute:
    """Return higher's `innerloop_ctx`, without the copy of the initial weights."""
    import higher as library

    model, start = problem.model, list(problem.model.parameters())
    optimizer = torch.optim.SGD(start, lr=inner_lr)

    def compute() -> list[Tensor]:
        with library.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, inner):
            for batch in batches.inner:
                inner.step(F.cross_entropy(functional(batch.inputs), batch.targets))
            loss = F.cross_entropy(functional(batches.outer.inputs), batches.outer.targets)
            return list(torch.autograd.grad(loss, start))

    return compute


def torchopt(problem: Problem, batches: MetaBatches, inner_lr: float) -> Compute:
    """Return TorchOpt's `MetaSGD`, with the state of the module saved by reference."""
    import torchopt as library

    model, start = problem.model, list(problem.model.parameters())

    def compute() -> list[Tensor]:
        state = library.extract_state_dict(model, by="reference")
        inner = library.MetaSGD(model, lr=inner_lr)
        for batch in batches.inner:
            inner.step(F.cross_entropy(model(batch.inputs), batch.targets))
        loss = F.cross_entropy(model(batches.outer.inputs), batches.outer.targets)
        gradients = list(torch.autograd.grad(loss, start))
        library.recover_state_dict(model, state)
        return gradients

    return compute


def parallel_metalearn(problem: Problem, batches: MetaBatches, inner_lr: float) -> Compute:
    """Return `MAML.step` of parallel-metalearn, with an outer optimizer that leaves the parameters as they are.

    It takes one support batch for all inner steps: here these are stacked, and the model takes the one of its step. Of
    its two ways of going through tasks, `sequential` takes two thirds of the time of `vmap` on a single task of the MLP
    (4.9 ms ÷ 7.7 ms at ν = 1, 16 ÷ 26 at ν = 5), and as long on the CNN.
    """
    from metalearn.algorithms import MAML
    from metalearn.inner_optimizers import InnerSGD
    from metalearn.loss.base import BaseLoss

    class Stepwise(nn.Module):
        """Holds the network and returns its outputs on the batch of an inner step, as the library's wrapper does."""

        def __init__(self) -> None:
            super().__init__()
            self.network = problem.model

        def forward(self, stacked: Tensor, *, num_step: int, **_: object) -> dict[str, object]:
            return {"logits": self.network(stacked[num_step]), "step": num_step, "buffers": {}}

        def get_fast_weights(self) -> dict[str, nn.Parameter]:
            return dict(self.named_parameters())

    class CrossEntropy(BaseLoss):  # type: ignore[misc]
        """Returns the loss, and no accuracy, which none of the others computes."""

        def forward(self, out_dict: dict, targets: Tensor, **_: object) -> tuple[Tensor, float]:
            return F.cross_entropy(out_dict["logits"], targets[out_dict["step"]]), 0.0

    class Still(torch.optim.SGD):
        """Moves nothing."""

        def step(self, closure: object = None) -> None:  # type: ignore[override]  # noqa: ARG002
            return

    model, nu = Stepwise(), max(1, len(batches.inner))
    inner = InnerSGD(model.get_fast_weights(), inner_lr=inner_lr, max_inner_steps=nu, learn_lr=False)
    outer = (batches.outer.inputs.expand(nu, *batches.outer.inputs.shape), batches.outer.targets.expand(nu, -1))
    support = [torch.stack([getattr(batch, kind) for batch in batches.inner]) for kind in ("inputs", "targets")]
    task = tuple(each.unsqueeze(0) for each in (*support, *outer))  # a batch of one task
    learner = MAML(
        model=model,
        optimizer=Still(model.parameters(), lr=0.0),
        inner_optimizer=inner,
        support_loss_fn=CrossEntropy(),
        inner_steps=nu,
        device=torch.device("cpu"),
        backend="sequential",
    )

    def compute() -> list[Tensor]:
        learner.step(iter([task]))
        return [p.grad for p in problem.model.parameters() if p.grad is not None]

    return compute


PEERS: dict[str, Callable[[Problem, MetaBatches, float], Compute]] = {
    "naive": naive,
    "learn2learn": learn2learn,
    "higher": higher,
    "torchopt": torchopt,
    "parallel-metalearn": parallel_metalearn,
}


def plain_gradient(problem: Problem, batches: MetaBatches) -> Callable[[], None]:
    """Return the unit of all tables: zero_grad, forward, backward of the module on one batch."""
    model: nn.Module = problem.model

    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(batches.outer.inputs), batches.outer.targets).backward()

    return run
