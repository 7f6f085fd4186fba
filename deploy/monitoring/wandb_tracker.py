"""Tracking with Weights & Biases; `WANDB_MODE=offline` keeps everything on this machine until `wandb sync`."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nufed.deploy.monitoring.tracking import TrackedRun


class WandbTracker:
    """Holds the open run. The project is called `nufed`, or as WANDB_PROJECT says."""

    def __init__(self) -> None:
        """Have no run yet."""
        self._run: Any = None
        self._name = ""

    def begin(self, run: TrackedRun) -> str:
        """Make a run, or go on with the earlier one; the runs of an experiment are a group."""
        import wandb

        name = run.earlier or secrets.token_hex(4)
        group = run.parent or (name if run.is_parent else None)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "nufed",
            name=run.name,
            id=name,
            resume="allow",
            config=dict(run.options),
            dir=str(run.folder),
            group=group,
            job_type="experiment" if run.is_parent else "run",
            settings=wandb.Settings(silent=True, console="off", init_timeout=30),
        )
        self._name = run.folder.name
        return name

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of a round; several calls of one round make one record."""
        self._run.log(dict(metrics), step=step)

    def end(self, status: str, files: Sequence[Path]) -> None:
        """Record the files as an artefact, and how the run ended."""
        import wandb

        artifact = wandb.Artifact(f"nufed-{self._name}", type="run")
        for path in files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "complete" else 1)
