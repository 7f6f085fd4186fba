"""Metrics along an adaptation curve: several steps are judged at once, which costs little more than one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nufed.common.metrics.judged import Judged, judged
from nufed.common.metrics.judging import compute_all
from nufed.common.metrics.registry import Compute

MOST_NUMBERS = 2**22
"""Outputs that are kept until they are judged: 16 MiB in float32."""


class MetricCurves:
    """Holds outputs of several steps until they are judged together."""

    def __init__(self, computes: Mapping[str, Compute], targets: Any, ignored: int | None = None) -> None:
        """Judge by `computes` what is to meet `targets` [N, ...]; `ignored` is the target that does not count."""
        self._computes, self._targets, self._ignored = computes, targets, ignored
        self._waiting: list[Tensor] = []
        self._curves: dict[str, list[float]] = {name: [] for name in computes}

    def add(self, outputs: Tensor) -> None:
        """Take the outputs [N, ...] after one more step."""
        if not self._computes:
            return
        self._waiting.append(outputs)
        if not isinstance(self._targets, Tensor) or outputs.numel() * (len(self._waiting) + 1) > MOST_NUMBERS:
            self._judge()

    def curves(self) -> dict[str, list[float]]:
        """Return each metric after each step so far."""
        self._judge()
        return self._curves

    def _judge(self) -> None:
        if not self._waiting:
            return
        first, number = self._waiting[0], len(self._waiting)
        if number == 1:
            found = compute_all(self._computes, judged(first, self._targets, self._ignored))
        else:
            found = compute_all(self._computes, self._stacked(torch.stack(self._waiting)))
        for name, values in found.items():
            self._curves[name] += values.reshape(-1).tolist()
        self._waiting = []

    def _stacked(self, outputs: Tensor) -> Judged:
        one = judged(outputs[0], self._targets, self._ignored)
        number = len(outputs)
        return replace(
            one,
            outputs=outputs,
            targets=self._targets.expand(number, *self._targets.shape),
            counted=one.counted.expand(number, -1),
        )
