"""What test_ray_experiment.py runs in a process of its own: cells whose data functions raise, or end their process."""

import json
import os
import tempfile
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.errors import NufedError
from nufed.deploy.experiments import ray_cells
from nufed.deploy.experiments.cells import Cell
from nufed.deploy.experiments.ray_cells import RayCells
from nufed.deploy.experiments.runner import Workers, run_cells

MODULE = """
import os
import numpy as np
from pathlib import Path

def once(config, seed):
    if not Path("was-here").exists():
        Path("was-here").touch()
        os._exit(1)
    return {f"factory-{i}": (np.ones((20, 2), "float32"), np.arange(20) % 2) for i in range(4)}

def wrong(config, seed):
    raise ValueError("client factory-3 has no machine")

def always(config, seed):
    os._exit(1)
"""


def cell(name):
    options = {"data.source": f"python:machines:{name}", "data.num-clients": 3, "data.num-new-clients": 1}
    few = {"model.name": "linear", "federation.num-rounds": 1, "evaluation.num-adapt-steps": 1}
    return Cell(name, RunConfig().updated({**options, **few, "evaluation.primary-step": 1}))


def explained(name, workers):
    try:
        run_cells([cell(name)], workers)
    except NufedError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main():
    """Print what became of each cell."""
    os.environ["RAY_TMPDIR"] = tempfile.gettempdir()  # its sockets need short paths
    os.environ["TMPDIR"] = str(Path.cwd() / "temporary")
    Path("temporary").mkdir()
    tempfile.tempdir = None
    Path("machines.py").write_text(MODULE)
    said, seen, out = [], {"temporary": os.environ["TMPDIR"]}, Path("own")
    ray_cells.ATTEMPTS = 2
    with RayCells("local", "cohort") as cluster:
        workers = Workers(out, 1, "cohort", said.append, cluster=cluster)
        [outcome] = run_cells([cell("once")], workers).values()
        kind = "complete" if outcome.folder and (outcome.folder / "summary.json").is_file() else outcome.problem
        seen["once"] = [kind, len([line for line in said if "starts again" in line])]
        seen["always"] = explained("always", workers)
        seen["wrong"] = {"ray": explained("wrong", workers)}
    seen["wrong"]["processes"] = explained("wrong", Workers(out, 1, "cohort", said.append))
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
