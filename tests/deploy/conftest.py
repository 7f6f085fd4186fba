"""Folders of runs as they are found: whole, going on, killed, torn, and not runs at all."""

import json

import pytest

from nufed.deploy.commands.cli import main


@pytest.fixture(scope="session")
def some_runs(tmp_path_factory):
    """Return a folder with three runs: two on digits that differ by their inner steps, the last one on sinusoids."""
    out = tmp_path_factory.mktemp("runs")
    common = ["--out", str(out), "--quiet", "--clients", "4", "--new-clients", "2", "--rounds", "3"]
    often = ["--set", "evaluation.interval=1"]
    assert main(["simulate", "--name", "three", *common, *often]) == 0
    assert main(["simulate", "--name", "one", "--method", "per-fedavg", *common, *often]) == 0
    assert main(["simulate", "--name", "waves", "--dataset", "sinusoid", *common]) == 0
    for number, name in enumerate(["three", "one", "waves"]):  # so that their order is the one that they were run in
        (folder,) = out.glob(f"*-{name}")
        target = out / f"20260101-00000{number}-{name}"
        folder.rename(target)
        described = json.loads((target / "environment.json").read_text())
        started = f"2026-01-01T00:00:0{number}+00:00"
        (target / "environment.json").write_text(json.dumps({**described, "started": started}))
    return out
