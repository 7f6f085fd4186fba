"""Many independent stochastic meta-gradients and runs at once, on logistic problems with analytic constants.

Rows are independent: row r belongs to client `clients[r]` and draws batches of its own, with replacement as A4 assumes.
Written apart from the estimators, so that the bounds are judged on the algorithm and not on its implementation.
"""

from dataclasses import dataclass, field

import torch

from nufed.common.rng import torch_generator
from tests.oracles import Logistic


@dataclass
class Simulation:
    """Stochastic meta-gradients of a federation of equally large logistic problems; keeps its random stream."""

    problems: list[Logistic]
    alpha: float
    seed: int
    delta: float = 1e-2
    generator: torch.Generator = field(init=False)

    def __post_init__(self):
        self.inputs = torch.stack([problem.inputs for problem in self.problems])
        self.signs = torch.stack([problem.signs for problem in self.problems])
        self.generator = torch_generator(self.seed, "simulation")

    def draw(self, rows, size):
        total = self.signs.shape[1]
        if size == 0:
            return torch.arange(total).expand(rows, total)
        return torch.randint(total, (rows, size), generator=self.generator)

    def gradient(self, w, clients, batch):
        x, y = self.inputs[clients[:, None], batch], self.signs[clients[:, None], batch]
        weight = y * torch.sigmoid(-y * torch.einsum("rbd,rd->rb", x, w))
        return -torch.einsum("rbd,rb->rd", x, weight) / batch.shape[1]

    def product(self, w, v, clients, batch):
        x = self.inputs[clients[:, None], batch]
        chance = torch.sigmoid(torch.einsum("rbd,rd->rb", x, w))
        weight = chance * (1 - chance) * torch.einsum("rbd,rd->rb", x, v)
        return torch.einsum("rbd,rb->rd", x, weight) / batch.shape[1]

    def meta_gradients(self, w, clients, nu, kind, size):
        """Return one meta-gradient per row [R, d]; `size` examples in every batch, 0 for all of them."""
        path, inner = [w], []
        for _ in range(nu):
            inner.append(self.draw(len(w), size))
            path.append(path[-1] - self.alpha * self.gradient(path[-1], clients, inner[-1]))
        v = self.gradient(path[nu], clients, self.draw(len(w), size))
        for point, used in zip(reversed(path[:nu]), reversed(inner), strict=True):
            if kind == "first-order":
                break
            batch = used if kind == "unrolled" else self.draw(len(w), size)
            if kind == "hessian-free":
                length = v.norm(dim=1, keepdim=True)
                step = self.delta * v / length
                ends = self.gradient(point + step, clients, batch) - self.gradient(point - step, clients, batch)
                v = v - self.alpha * length * ends / (2 * self.delta)
            else:
                v = v - self.alpha * self.product(point, v, clients, batch)
        return v

    def client_meta_gradients(self, w, nu):
        """Return every client's true meta-gradient at w, [n, d]."""
        clients = torch.arange(len(self.problems))
        return self.meta_gradients(w.expand(len(clients), -1), clients, nu, "exact", 0)

    def meta_loss(self, w, nu):
        """Return F(w)."""
        losses = []
        for problem in self.problems:
            point = w
            for _ in range(nu):
                point = point - self.alpha * problem.gradient(point)
            losses.append(problem.loss(point))
        return float(torch.stack(losses).mean())
