"""What a forward pass does inside: the functions it calls, the memory it takes, and the random numbers it draws."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nufed.common.rng import generator_states
from nufed.common.traits import Draws

Result = TypeVar("Result")

KINKED_FUNCTIONS = {
    "relu": "relu",
    "relu_": "relu",
    "leaky_relu": "leaky_relu",
    "leaky_relu_": "leaky_relu",
    "rrelu_with_noise": "rrelu",
    "rrelu_with_noise_": "rrelu",
    "_prelu_kernel": "prelu",
    "hardtanh": "hardtanh",
    "hardtanh_": "hardtanh",
    "hardsigmoid": "hardsigmoid",
    "hardsigmoid_": "hardsigmoid",
    "hardswish": "hardswish",
    "hardswish_": "hardswish",
    "threshold": "threshold",
    "threshold_": "threshold",
    "max_pool2d_with_indices": "max_pool",
    "max_pool3d_with_indices": "max_pool",
    "mkldnn_max_pool2d": "max_pool",
    "mkldnn_max_pool3d": "max_pool",
    "adaptive_max_pool2d": "adaptive_max_pool",
    "adaptive_max_pool3d": "adaptive_max_pool",
    "fractional_max_pool2d": "fractional_max_pool",
    "fractional_max_pool3d": "fractional_max_pool",
}
"""Operations of torch by the function that users know them by."""

CLAMPS = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_"}
CLAMPED_SHARE = 0.01
"""From this share of changed elements on, a clamp is a nonlinearity, and below it a safeguard against rounding."""


@dataclass
class Recording:
    """What was seen of one forward pass; filled while it runs.

    Attributes:
        kinks: names of functions with kinks.
        attends: whether fused attention was called.
        precisions: types of the floating-point results.
        num_bytes: size of all results together, views left out.
    """

    kinks: set[str] = field(default_factory=set)
    attends: bool = False
    precisions: set[torch.dtype] = field(default_factory=set)
    num_bytes: int = 0


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the operations inside the block; holds what it saw."""

    def __init__(self, recording: Recording) -> None:
        """Fill this recording."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording = recording

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: torch then need not import its compiler, over a second, to keep it away from a plain call."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the operation and note what it was."""
        name = func.overloadpacket.__name__
        before = args[0].clone() if name in CLAMPS and name.endswith("_") else args[0] if args else None
        result = func(*args, **(kwargs or {}))
        if name in CLAMPS and isinstance(before, Tensor):
            if float((result != before).double().mean()) > CLAMPED_SHARE:
                self._recording.kinks.add("clamp")
        elif name in KINKED_FUNCTIONS:
            self._recording.kinks.add(KINKED_FUNCTIONS[name])
        self._recording.attends |= name.startswith("_scaled_dot_product")
        inputs = {tensor.untyped_storage().data_ptr() for tensor in args if _is_plain(tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if not _is_plain(tensor):
                continue
            if tensor.is_floating_point():
                self._recording.precisions.add(tensor.dtype)
            if tensor.untyped_storage().data_ptr() not in inputs:
                self._recording.num_bytes += tensor.numel() * tensor.element_size()
        return result


def record(forward: Callable[[], Result]) -> tuple[Result, Recording]:
    """Return what a forward pass gives, and what it did."""
    recording = Recording()
    with Recorder(recording):
        outputs = forward()
    return outputs, recording


def draws_of(forward: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Draws]:
    """Return what a forward pass gives, and whose global generators it drew from."""
    before = generator_states(device)
    outputs = forward()
    after = generator_states(device)
    moved = {name for name in before if before[name] != after[name]}
    return outputs, "nothing" if not moved else "torch" if moved == {"torch"} else "anything"


def _is_plain(tensor: object) -> TypeGuard[Tensor]:
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided
