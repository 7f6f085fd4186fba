"""All points of a grid at once: plain federated loops over stacked models, to see which points are worth a real run.

The algorithm of the engines (τ meta steps on batches of their own, the clients' mean, s* steps at test time), written
down once more with `torch.func`, for models and losses that are one tensor in and out. Draws are others than a run's.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.examples import ClientData, Examples
from nufed.common.models import DTYPES, build_model
from nufed.common.params import Params
from nufed.common.rng import torch_generator
from nufed.common.settings import process_settings
from nufed.common.trees import one_tensor


class BatchedGrid:
    """The federation of a seed, and one number of inner steps; holds the examples."""

    def __init__(self, config: RunConfig) -> None:
        """Load the federation of a run's options."""
        dtype = DTYPES[config.model.dtype]
        federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=process_settings())
        self.config, self.task = config, federation.task
        self.training = [each for each in federation.clients if each.group == "participating"]
        self.judged = [each for each in federation.clients if each.group == "new"] or self.training
        self.model = build_model(config.model, federation.task, seed=config.seed)
        self.generator = torch_generator(config.seed, "benchmark", "grid")

    def values(self, points: Sequence[tuple[float, float]]) -> list[float]:
        """Return of each point (α, β) the mean over clients of accuracy, or of minus the loss, after s* steps."""
        params, _ = stack_module_state([self.model] * len(points))
        start = {name: tensor.detach() for name, tensor in params.items()}
        alphas, betas = (torch.tensor(column) for column in zip(*points, strict=True))
        federation = self.config.federation
        num_chosen = max(1, round(federation.participation_fraction * len(self.training)))
        for _ in range(federation.num_rounds):
            order = torch.randperm(len(self.training), generator=self.generator)[:num_chosen].tolist()
            start = self._trained(start, [self.training[index].support for index in order], alphas, betas)
        found = torch.stack([self._judged(start, client, alphas) for client in self.judged]).mean(0)
        return [value if math.isfinite(value) else math.nan for value in found.tolist()]

    def _loss(self, params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = functional_call(self.model, params, (inputs,))
        if self.task.kind == "classification":
            return torch.nn.functional.cross_entropy(outputs, targets)
        return 0.5 * (outputs - targets).square().sum(-1).mean()

    def _drawn(self, supports: Sequence[Examples], times: int) -> tuple[Tensor, Tensor]:
        """Return a batch of each client, [m, B, ...], so many times behind one another."""
        smallest = min(map(len, supports))
        size = min(self.config.method.batch_size or smallest, smallest)
        rows = [torch.randperm(len(each), generator=self.generator)[:size] for each in supports]
        parts = [each.take(own) for each, own in zip(supports, rows, strict=True)]
        inputs = torch.stack([one_tensor(part.inputs) for part in parts])
        targets = torch.stack([one_tensor(part.targets) for part in parts])
        return tuple(each.repeat(times, *[1] * (each.dim() - 1)) for each in (inputs, targets))

    def _trained(
        self, params: Mapping[str, Tensor], supports: Sequence[Examples], alphas: Tensor, betas: Tensor
    ) -> Params:
        """Return the mean over clients of what τ meta steps make of each point's model."""
        method, num = self.config.method, len(supports)
        point = {name: tensor.repeat_interleave(num, 0) for name, tensor in params.items()}
        sizes, steps = (each.repeat_interleave(num) for each in (alphas, betas))
        for _ in range(method.num_local_steps):
            batches = [self._drawn(supports, len(alphas)) for _ in range(method.num_inner_steps + 1)]

            def after(one: Params, alpha: Tensor, *data: Tensor) -> Tensor:
                *inner, outer = zip(data[::2], data[1::2], strict=True)
                for batch in inner:
                    slope = grad(self._loss)(one, *batch)
                    one = {name: tensor - alpha * slope[name] for name, tensor in one.items()}
                return self._loss(one, *outer)

            slopes = vmap(grad(after))(point, sizes, *[tensor for batch in batches for tensor in batch])
            norms = torch.stack([each.flatten(1).square().sum(1) for each in slopes.values()]).sum(0).sqrt()
            held = steps * torch.clamp(method.max_grad_norm / norms, max=1.0) if method.max_grad_norm else steps
            point = {name: tensor - _along(held, tensor) * slopes[name] for name, tensor in point.items()}
        return {name: tensor.unflatten(0, (-1, num)).mean(1) for name, tensor in point.items()}

    def _judged(self, params: Mapping[str, Tensor], client: ClientData, alphas: Tensor) -> Tensor:
        support = one_tensor(client.support.inputs), one_tensor(client.support.targets)
        inputs, targets = one_tensor(client.test.inputs), one_tensor(client.test.targets)
        point = dict(params)
        for _ in range(self.config.evaluation.primary_step):
            slopes = vmap(lambda one: grad(self._loss)(one, *support))(point)
            point = {name: tensor - _along(alphas, tensor) * slopes[name] for name, tensor in point.items()}
        if self.task.kind != "classification":
            return -vmap(lambda one: self._loss(one, inputs, targets))(point)
        outputs = vmap(lambda one: functional_call(self.model, one, (inputs,)))(point)
        right = (outputs.argmax(-1) == targets).float().mean(-1)
        return torch.where(outputs.flatten(1).isfinite().all(1), right, torch.nan)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Return one number for each stacked model in the shape that multiplies a stacked tensor."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
