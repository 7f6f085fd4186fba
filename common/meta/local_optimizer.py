"""What a client makes of the directions of its τ meta steps: plain steps, momentum or Adam, begun anew in each round.

The arithmetic is element by element, so that it serves one client's parameters and those of several, stacked.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.params import Params


class LocalOptimizer:
    """Holds the moments of a client's directions over the τ meta steps of one round.

    w - β `velocity(v)` is the step of `torch.optim.SGD` (with momentum) and of `torch.optim.Adam` along v, up to
    rounding. Nothing is kept between rounds: each begins with moments of 0, at another model.
    """

    def __init__(self, method: MethodConfig) -> None:
        """Begin a round."""
        self._method = method
        self._first: Params = {}
        self._second: Params = {}
        self._count = 0

    def velocity(self, direction: Params) -> Params:
        """Return what the model is moved along, -β times it; the direction itself where steps are plain.

        Args:
            direction: of this meta step, e.g. the clipped meta-gradient; not changed, nor kept.
        """
        method = self._method
        if method.local_optimizer == "sgd":
            return direction
        self._count += 1
        with torch.no_grad():
            if method.local_optimizer == "momentum":
                self._first = _added(self._first, direction, method.local_momentum, 1.0)
                return self._first
            beta1, beta2 = method.local_beta1, method.local_beta2
            squares = {name: tensor.square() for name, tensor in direction.items()}
            self._first = _added(self._first, direction, beta1, 1 - beta1)
            self._second = _added(self._second, squares, beta2, 1 - beta2)
            first, second = 1 - beta1**self._count, 1 - beta2**self._count
            return {
                name: (moment / first) / ((self._second[name] / second).sqrt() + method.local_eps)
                for name, moment in self._first.items()
            }


def _added(moment: Params, new: Mapping[str, Tensor], kept: float, added: float) -> Params:
    """Return kept × moment + added × new, in memory of its own; a moment without arrays is 0."""
    if not moment:
        return {name: added * tensor for name, tensor in new.items()}
    return {name: kept * moment[name] + added * tensor for name, tensor in new.items()}
