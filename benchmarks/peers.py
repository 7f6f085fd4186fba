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


PEERS: dict[str, Callable[[Problem, MetaBatches, float], Compute]] = {
    "naive": naive,
    "learn2learn": learn2learn,
    "higher": higher,
    "torchopt": torchopt,
}


def plain_gradient(problem: Problem, batches: MetaBatches) -> Callable[[], None]:
    """Return the unit of all tables: zero_grad, forward, backward of the module on one batch."""
    model: nn.Module = problem.model

    def run() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(batches.outer.inputs), batches.outer.targets).backward()

    return run
