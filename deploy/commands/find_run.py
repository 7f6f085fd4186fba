"""Find the folder of a run by what was asked for, so that a supervisor can start the same command again and again."""

import re
from dataclasses import dataclass
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.data.private.task import awaits_statistics
from nufed.deploy.simulation.engines import run_status
from nufed.server.checkpoint import checkpoint_round
from nufed.server.resuming import CONFIG, stored_config

_APART = "federation.num-rounds", "model.init-hash"
"""What a run may have been asked for, and has written down, otherwise."""

_OF_STATISTICS = "data.feature-means", "data.feature-scales"


@dataclass(frozen=True)
class FoundRun:
    """A run's folder, and whether it has done everything that is asked for."""

    folder: Path
    complete: bool

    def scaled(self, config: RunConfig) -> RunConfig:
        """Return the options with the means and scales that the run got of its clients' statistics."""
        stored = stored_config(self.folder).flat()
        return (
            config.updated({key: stored[key] for key in _OF_STATISTICS}) if awaits_statistics(config.data) else config
        )


def find_run(out: Path, config: RunConfig) -> FoundRun | None:
    """Return the newest run in `out` with this configuration, number of rounds apart; None if there is none.

    Folders of other names are not looked into, and neither are folders whose options were not written down yet.

    Raises:
        NufedError: a folder of this name holds options that this version does not know.
    """
    named = re.compile(rf"\d{{8}}-\d{{6}}-{re.escape(config.name)}(-\d+)?")
    ignored = dict.fromkeys([*_APART, *(_OF_STATISTICS if awaits_statistics(config.data) else ())])
    wanted = {**config.flat(), **ignored}
    folders = [path for path in out.iterdir() if named.fullmatch(path.name)] if out.is_dir() else []
    for folder in sorted(folders, reverse=True):
        if not (folder / CONFIG).is_file():
            continue
        stored = stored_config(folder)
        if {**stored.flat(), **ignored} == wanted:
            all_done = checkpoint_round(folder) == config.federation.num_rounds
            return FoundRun(folder, all_done and run_status(folder) == "complete")
    return None
