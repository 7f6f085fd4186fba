"""The server's step: where the mean of the clients' models becomes the next model, and what the step remembers.

The mean is one step of the clients together, so w_k - mean stands for a gradient, of the mean loss or of the mean
meta-objective: Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar and McMahan, "Adaptive Federated Optimization",
ICLR 2021 (Algorithm 2: FedAdagrad, FedAdam, FedYogi, whose Δ is mean - w_k); Hsu, Qi and Brown, "Measuring the Effects
of Non-Identical Data Distribution for Federated Visual Classification", 2019 (FedAvgM).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.config.federation import FederationConfig
from nufed.common.errors import ConfigError, DivergedError, RunError
from nufed.common.params import Params, largest_magnitude
from nufed.common.registry import find_registered

ServerState = Mapping[str, Tensor]
"""What the server's optimizer remembers between rounds: moments in float64 by `kind/array`, and counts of steps; empty
before the first step."""

_RUNNING = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""Last parts of the names that PyTorch's normalization layers give to what they count, and nobody descends on."""


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server goes from w_k on the pseudo-gradient w_k - mean; the defaults are those of the papers.

    Attributes:
        name: a key of `SERVER_OPTIMIZERS`.
        momentum: β of `momentum`, in [0, 1).
        beta1: of the mean of pseudo-gradients, for `adam` and `yogi`, in [0, 1).
        beta2: of the mean of their squares, for `adam` and `yogi`, in [0, 1).
        eps: τ, added to the root of the second moment of `adam`, `yogi` and `adagrad`, which starts at τ²; above 0.
        bias_correction: whether `adam` divides its moments, which then start at 0, by 1 - βᵗ (Kingma and Ba 2015),
            as FedOpt's Algorithm 2 does not.
        averaged: arrays whose names begin with one of these take the mean itself under every optimizer, as integers
            and the running statistics of PyTorch's layers do under all but `sgd`.

    Raises:
        ConfigError: the name is unknown, or a number is out of range.
    """

    name: str = "sgd"
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-3
    bias_correction: bool = False
    averaged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        find_registered(SERVER_OPTIMIZERS, self.name, what="server optimizer", option="federation.server-optimizer")
        for key in ("momentum", "beta1", "beta2"):
            if not 0 <= (value := getattr(self, key)) < 1:
                raise ConfigError(f"ServerOptimizer: {key}={value!r} is refused. Expected at least 0, below 1.")
        if not 0 < self.eps < math.inf:
            raise ConfigError(f"ServerOptimizer: eps={self.eps!r} is refused. Expected a number above 0.")
        if self.bias_correction and self.name != "adam":
            raise ConfigError(
                f"ServerOptimizer: bias_correction=True contradicts {self.name!r}: it is adam's alone. Leave it False."
            )


def as_optimizer(given: str | ServerOptimizer) -> ServerOptimizer:
    """Return an optimizer that is given by its name, with the papers' options, or as it is.

    Raises:
        ConfigError: the name is unknown.
    """
    return ServerOptimizer(given) if isinstance(given, str) else given


def configured_optimizer(federation: FederationConfig, averaged: tuple[str, ...] = ()) -> ServerOptimizer:
    """Return the optimizer of a run's options; arrays whose names begin with one of `averaged` take the mean."""
    return ServerOptimizer(
        federation.server_optimizer,
        momentum=federation.server_momentum,
        beta1=federation.server_beta1,
        beta2=federation.server_beta2,
        eps=federation.server_eps,
        bias_correction=federation.server_bias_correction,
        averaged=averaged,
    )


def next_model(
    sent: Mapping[str, Tensor], mean: Params, server_lr: float, optimizer: ServerOptimizer, state: ServerState
) -> tuple[Params, ServerState]:
    """Return w_{k+1} and the optimizer's new state; computed in float64, and rounded to the parameters' types once.

    Nothing else makes a model of a mean: whoever changes what the mean is taken of (noise, robust rules, late replies)
    comes before, and the step is post-processing of it.

    Args:
        sent: w_k, in the same names, shapes and types as the mean.
        mean: of the clients' models.
        server_lr: η (ε of Reptile and β of pFedMe), above 0.
        optimizer: what becomes of w_k - mean.
        state: of the same optimizer after round k - 1; not changed. Empty before the first step.

    Raises:
        DivergedError: the step leaves the range of the parameters' type.
        RunError: the state is not this optimizer's, of these arrays.
    """
    names = [name for name in mean if _descends(name, mean[name], optimizer)]
    rule = _rule_of(optimizer)
    _check_state(state, rule, sent, names, optimizer)
    if rule.take is None:
        return _towards(sent, {name: mean[name] for name in names}, mean, server_lr), {}
    points = {name: sent[name].double() for name in names}
    gradients = {name: points[name] - mean[name].double() for name in names}
    memory = {name: {kind: state[f"{kind}/{name}"] for kind in rule.kinds} if state else {} for name in names}
    moved = dict(mean)
    kept: dict[str, Tensor] = {}
    for name, (point, remembered) in rule.take(points, gradients, memory, server_lr, optimizer).items():
        moved[name] = _rounded(name, point, mean[name], server_lr)
        kept |= {f"{kind}/{name}": tensor for kind, tensor in remembered.items()}
    return moved, kept


def _descends(name: str, tensor: Tensor, optimizer: ServerOptimizer) -> bool:
    """Return whether an array is stepped; the others take the mean."""
    if name.startswith(optimizer.averaged):
        return False
    is_counted = not tensor.is_floating_point() or name.rpartition(".")[2] in _RUNNING
    return optimizer.name == "sgd" or not is_counted


def _check_state(
    state: ServerState, rule: "_Rule", sent: Mapping[str, Tensor], names: Iterable[str], optimizer: ServerOptimizer
) -> None:
    expected = {f"{kind}/{name}": sent[name].shape for name in names for kind in rule.kinds if kind != "step"}
    found = {name: tensor.shape for name, tensor in state.items() if not name.startswith("step/")}
    if state and found != expected:
        strange = sorted(found.keys() ^ expected.keys()) or [key for key in expected if found[key] != expected[key]]
        raise RunError(
            f"Expected the state of server optimizer {optimizer.name} for the arrays of the model, but {strange[0]!r} "
            "does not fit. Go on with the optimizer that made it, or start with an empty state."
        )


def _towards(sent: Mapping[str, Tensor], stepped: Params, mean: Params, server_lr: float) -> Params:
    """Return w_k + ε (mean - w_k); the mean itself, bit for bit, where ε is 1.

    ε < 1 is the server step of Reptile (Nichol, Achiam and Schulman 2018, Algorithm 2) and, as β, of pFedMe (T. Dinh,
    Tran and Nguyen 2020, Algorithm 1).
    """
    if server_lr == 1:
        return mean
    moved = dict(mean)
    for name, tensor in stepped.items():
        before = sent[name].double()
        after = before + server_lr * (tensor.double() - before)
        moved[name] = _rounded(name, after, tensor, server_lr)
    return moved


def _rounded(name: str, after: Tensor, like: Tensor, server_lr: float) -> Tensor:
    """Return an array in its own type; integers to the nearest."""
    moved = (after if like.is_floating_point() else after.round()).to(like.dtype)
    if not math.isfinite(largest_magnitude(moved)):
        raise DivergedError(
            f"Expected a server step of size {server_lr:g} to stay finite, but array {name!r} does not. Lower "
            "federation.server-lr."
        )
    return moved


Memory = dict[str, Tensor]
_Taken = dict[str, tuple[Tensor, Memory]]
_Take = Callable[[Params, Params, Mapping[str, Memory], float, ServerOptimizer], _Taken]
"""(points, gradients, memory by array, η, options) -> the new point and memory of each array."""


@dataclass(frozen=True)
class _Rule:
    """An optimizer; `kinds` are what it remembers, and `take` is None for the plain step, which remembers nothing."""

    take: _Take | None = None
    kinds: tuple[str, ...] = ()


def _by_torch(
    make: Callable[[list[Tensor], float, ServerOptimizer], torch.optim.Optimizer], kinds: tuple[str, ...]
) -> _Rule:
    """Return an optimizer of `torch.optim`, whose state comes and goes with each step."""

    def take(
        points: Params, gradients: Params, memory: Mapping[str, Memory], lr: float, options: ServerOptimizer
    ) -> _Taken:
        leaves = {name: point.clone() for name, point in points.items()}
        for name, leaf in leaves.items():
            leaf.grad = gradients[name]
        if not leaves:
            return {}
        optimizer = make(list(leaves.values()), lr, options)
        for name, leaf in leaves.items():
            if memory[name]:
                optimizer.state[leaf] = {kind: tensor.clone() for kind, tensor in memory[name].items()}
        optimizer.step()
        return {name: (leaf, {kind: optimizer.state[leaf][kind] for kind in kinds}) for name, leaf in leaves.items()}

    return _Rule(take, kinds)


def _by_moments(second_moment: Callable[[Tensor, Tensor, float], Tensor]) -> _Rule:
    """Return FedAdam or FedYogi as Algorithm 2 of FedOpt has them, without correction of a bias; v starts at τ²."""

    def take(
        points: Params, gradients: Params, memory: Mapping[str, Memory], lr: float, options: ServerOptimizer
    ) -> _Taken:
        taken: _Taken = {}
        for name, point in points.items():
            gradient, before = gradients[name], memory[name]
            first = before.get("exp_avg", torch.zeros_like(point))
            second = before.get("exp_avg_sq", torch.full_like(point, options.eps**2))
            first = options.beta1 * first + (1 - options.beta1) * gradient
            second = second_moment(second, gradient.square(), options.beta2)
            taken[name] = (point - lr * first / (second.sqrt() + options.eps), _moments(first, second))
        return taken

    return _Rule(take, ("exp_avg", "exp_avg_sq"))


def _moments(first: Tensor, second: Tensor) -> Memory:
    return {"exp_avg": first, "exp_avg_sq": second}


def _adam(second: Tensor, square: Tensor, beta2: float) -> Tensor:
    return beta2 * second + (1 - beta2) * square


def _yogi(second: Tensor, square: Tensor, beta2: float) -> Tensor:
    return second - (1 - beta2) * square * (second - square).sign()


SERVER_OPTIMIZERS = {
    "sgd": _Rule(),
    "momentum": _by_torch(
        lambda points, lr, options: torch.optim.SGD(points, lr=lr, momentum=options.momentum), ("momentum_buffer",)
    ),
    "adam": _by_moments(_adam),
    "yogi": _by_moments(_yogi),
    "adagrad": _by_torch(
        lambda points, lr, options: torch.optim.Adagrad(
            points, lr=lr, initial_accumulator_value=options.eps**2, eps=options.eps
        ),
        ("step", "sum"),
    ),
}

_CORRECTED_ADAM = _by_torch(
    lambda points, lr, options: torch.optim.Adam(points, lr=lr, betas=(options.beta1, options.beta2), eps=options.eps),
    ("step", "exp_avg", "exp_avg_sq"),
)


def _rule_of(optimizer: ServerOptimizer) -> _Rule:
    return _CORRECTED_ADAM if optimizer.bias_correction else SERVER_OPTIMIZERS[optimizer.name]
