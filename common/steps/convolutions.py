"""Convolutions as matrix products, for losses that are mapped over clients with weights of their own.

`torch.vmap` makes one grouped convolution of m clients' convolutions, a group for each client, which GPUs compute
slowly, the backward passes above all. The same sums as m products of matrices took a third of the time at 200 clients,
and a quarter where the gradient is differentiated again (docs/performance.md).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)


class ConvolutionsAsProducts(TorchFunctionMode):
    """Within this context, convolutions of one group and without dilation are products of matrices."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute a function in its place."""
        if function in CONVOLUTIONS and (found := _as_product(*args, **(kwargs or {}))) is not None:
            return found
        return function(*args, **(kwargs or {}))


def _as_product(  # noqa: PLR0913 - PyTorch's signature
    input: Tensor,  # noqa: A002 - PyTorch's name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return the convolution of inputs [b, c, *n] and weights [o, c, *k], or None where it is left to PyTorch's own."""
    num_axes = weight.dim() - 2
    widths = _each(0 if isinstance(padding, str) else padding, num_axes)
    is_plain = groups == 1 and set(_each(dilation, num_axes)) == {1}
    if not is_plain or padding == "same" or input.dim() != weight.dim():
        return None
    patches = pad(input, [width for pair in reversed(widths) for width in (pair, pair)]) if any(widths) else input
    for axis, (size, step) in enumerate(zip(weight.shape[2:], _each(stride, num_axes), strict=True)):
        patches = patches.unfold(axis + 2, size, step)  # [b, c, *places, *k so far]
    places = patches.shape[2 : 2 + num_axes]
    order = [0, *range(2, 2 + num_axes), 1, *range(2 + num_axes, 2 + 2 * num_axes)]
    rows = patches.permute(order).reshape(-1, weight[0].numel())
    sums = rows @ weight.flatten(1).T
    sums = sums if bias is None else sums + bias
    return sums.reshape(input.shape[0], *places, weight.shape[0]).movedim(-1, 1)


def _each(value: int | Sequence[int], count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) if len(value) == count else tuple(value) * count
