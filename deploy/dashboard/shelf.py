"""The runs and experiments that a page can show: the one that goes on in this process, and those in a folder."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufed.common.errors import RunError
from nufed.common.untrusted import printable
from nufed.deploy.dashboard.experiment_view import ExperimentView
from nufed.deploy.dashboard.following import FolderFollower
from nufed.deploy.dashboard.hidden_paths import shareable_options, without_folders
from nufed.deploy.dashboard.run_view import RunView
from nufed.deploy.runs.catalog import CELLS, is_experiment, run_folders
from nufed.deploy.runs.comparison import differing_options, progress
from nufed.deploy.runs.stored import StoredRun, read_stored

LIVE = "live"
MOST_LISTED, MOST_FOLLOWED, MOST_COMPARED = 1000, 16, 8


@dataclass(frozen=True)
class _Known:
    """A run's folder as it was read, and what its files looked like then."""

    marks: tuple[float, ...]
    entry: dict[str, Any]


class Shelf:
    """Holds what was read of the folders, so that it is read again only where it has changed."""

    def __init__(self, root: Path | None, live: RunView | None = None) -> None:
        """Show the runs in `root` and the one that goes on here.

        Args:
            root: folder of runs or of an experiment, or a run's own; None shows the present run alone.
            live: the run that goes on in this process.
        """
        self.root, self.live = root, live
        self._followed: OrderedDict[str, FolderFollower] = OrderedDict()
        self._known: dict[Path, _Known] = {}
        self._experiments_read: dict[str, ExperimentView] = {}
        self._num_runs = 0
        self._lock = threading.Lock()

    def listing(self) -> dict[str, Any]:
        """Return the runs, newest first, and the experiments, by name."""
        folders = self._folders()
        runs = [{**self._entry(folder), "run": name} for name, folder in folders.items()]
        return {
            "runs": runs,
            "more": max(0, self._num_runs - len(runs)),
            "experiments": sorted(self._experiments()),
            "live": LIVE if self.live else None,
            "is_experiment": self.root is not None and is_experiment(self.root),
        }

    def view(self, name: str) -> RunView | None:
        """Return a run's view with what its folder says by now; None if there is no such run."""
        if name == LIVE:
            return self.live
        follower = self.follower(name)
        return follower.refresh() if follower else None

    def follower(self, name: str) -> FolderFollower | None:
        """Return what follows a run's folder; None if there is no such run, or it goes on in this process."""
        with self._lock:
            if name in self._followed:
                self._followed.move_to_end(name)
                return self._followed[name]
        folder = self._folders().get(name)  # names are looked up among those that are there, never put into a path
        if folder is None:
            return None
        with self._lock:
            follower = self._followed.setdefault(name, FolderFollower(folder))
            while len(self._followed) > MOST_FOLLOWED:
                self._followed.popitem(last=False)
        return follower

    def comparison(self, names: list[str]) -> dict[str, Any]:
        """Return curves over rounds, results and differing options of runs; those that are not there are left out."""
        folders = self._folders()
        chosen = [folders[name] for name in dict.fromkeys(names) if name in folders][:MOST_COMPARED]
        stored = [read_stored(folder) for folder in chosen]
        options = [shareable_options(run.options) for run in stored]
        keys = differing_options(options)
        return {
            "runs": [{**_shown(run), "run": _name_of(run.folder), "progress": progress(run)} for run in stored],
            "options": [{"key": key, "values": [each.get(key) for each in options]} for key in keys],
        }

    def standing(self, name: str) -> dict[str, Any] | None:
        """Return how an experiment stands; None if there is no such one."""
        folder = self._experiments().get(name)
        if folder is None:
            return None
        with self._lock:
            experiment = self._experiments_read.setdefault(name, ExperimentView(folder))
        return experiment.read()

    def _experiments(self) -> dict[str, Path]:
        if self.root is None:
            return {}
        if is_experiment(self.root):
            return {self.root.resolve().name: self.root}
        try:
            return {path.name: path for path in self.root.iterdir() if path.is_dir() and is_experiment(path)}
        except OSError:
            return {}

    def _folders(self) -> dict[str, Path]:
        try:
            found = run_folders(self.root) if self.root is not None else []
        except RunError:
            found = []
        live = self.live.name if self.live else ""
        folders = [folder for folder in found if folder.resolve().name != live]
        self._num_runs = len(folders)
        return {_name_of(folder): folder for folder in folders[:MOST_LISTED]}

    def _entry(self, folder: Path) -> dict[str, Any]:
        marks = _marks(folder)
        known = self._known.get(folder)
        if known is None or known.marks != marks or known.entry["status"] in ("running", "killed"):
            known = _Known(marks, _shown(read_stored(folder)))
            self._known[folder] = known
        return known.entry


def _name_of(folder: Path) -> str:
    """Return what a run is asked for by: its folder's name, or its cell's, for runs of one second share names."""
    path = folder.resolve()
    return path.parent.name if path.parent.parent.name == CELLS else path.name


def _marks(folder: Path) -> tuple[float, ...]:
    times = []
    for name in ("config.json", "summary.json", "metrics.jsonl"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            times.append(0.0)
    return tuple(times)


def _shown(run: StoredRun) -> dict[str, Any]:
    values = run.to_json()
    values.pop("folder")
    data, reason = shareable_options({"data.source": values["data"]})["data.source"], values["reason"] or ""
    return {
        **values,
        "data": data,
        "reason": without_folders(printable(str(reason))),
        "damage": without_folders(values["damage"] or ""),
        "model": run.options.get("model.name"),
    }
