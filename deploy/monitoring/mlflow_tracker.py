"""Tracking with MLflow, on a server or in a database of one's own: `--track mlflow:http://127.0.0.1:5000`."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nufed.deploy.monitoring.tracking import TrackedRun

_ENDINGS = {"complete": "FINISHED", "interrupted": "KILLED", "budget-spent": "FINISHED"}
_LONGEST_VALUE = 500
_MOST_AT_ONCE = 100
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # else a server that is down is waited for for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
}


class MlflowTracker:
    """Holds the connection and the run; what MLflow keeps for a whole process is left alone.

    The experiment is called `nufed`, or as MLFLOW_EXPERIMENT_NAME says.

    Args:
        address: tracking URI; empty for that of MLFLOW_TRACKING_URI, or MLflow's own.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._client: Any = None
        self._run_id = ""

    def begin(self, run: TrackedRun) -> str:
        """Make a run, or go on with the earlier one, and record the options."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of every attempt
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._address or None)
        if run.earlier:
            self._client.update_run(run.earlier, status="RUNNING")
            self._run_id = run.earlier
            return self._run_id
        tags = {"nufed.folder": run.folder.name, "mlflow.source.name": "nufed", "mlflow.source.type": "LOCAL"}
        if run.parent:
            tags["mlflow.parentRunId"] = run.parent
        created = self._client.create_run(self._experiment(), run_name=run.name, tags=tags)
        self._run_id = str(created.info.run_id)
        self._record_options(run)
        return self._run_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers of a round in one request."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        batch = [Metric(name, value, now, step) for name, value in metrics.items()]
        self._client.log_batch(self._run_id, metrics=batch)

    def end(self, status: str, files: Sequence[Path]) -> None:
        """Send the files, and record how the run ended."""
        try:
            for path in files:
                self._client.log_artifact(self._run_id, str(path))
        finally:
            self._client.set_terminated(self._run_id, _ENDINGS.get(status, "FAILED"))

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "nufed"
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception:  # another run has made it meanwhile
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def _record_options(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        options = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in run.options.items()]
        for start in range(0, len(options), _MOST_AT_ONCE):
            self._client.log_batch(self._run_id, params=options[start : start + _MOST_AT_ONCE])
