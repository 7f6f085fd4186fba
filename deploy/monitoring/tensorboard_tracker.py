"""Tracking with TensorBoard: event files in the run's folder, which `tensorboard --logdir runs` shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nufed.deploy.monitoring.tracking import TrackedRun


class TensorBoardTracker:
    """Holds the open event file."""

    def __init__(self) -> None:
        """Have no run yet."""
        self._writer: Any = None

    def begin(self, run: TrackedRun) -> str:
        """Open a file; what an earlier part of the run has written of rounds that are done again is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        purge = run.first_round if run.first_round > 1 else None
        self._writer = SummaryWriter(str(run.place), purge_step=purge)
        rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in run.options.items())
        self._writer.add_text("configuration", f"| option | value |\n| --- | --- |\n{rows}", run.first_round - 1)
        return str(run.place)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write numbers of a round."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def end(self, status: str, files: Sequence[Path]) -> None:
        """Write how the run ended, and its picture."""
        self._writer.add_text("status", status)
        for path in files:
            if path.suffix == ".png":
                self._writer.add_image("curves", _pixels(path), dataformats="HWC")
        self._writer.close()


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;")


def _pixels(path: Path) -> Any:
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
