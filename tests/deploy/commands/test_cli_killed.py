"""Claims about a run whose process was killed, with a real process and a real kill."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nufed.deploy.commands.cli import main

RUN = [
    "simulate",
    "--quiet",
    *("--clients", "3", "--new-clients", "1", "--rounds", "40", "--local-steps", "1"),
    *("--set", "evaluation.interval=0"),
]


def wait_for_rounds(folder, number):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for metrics in folder.glob("*/metrics.jsonl"):
            if metrics.read_bytes().count(b"\n") >= number:
                return metrics.parent
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.system
def test_a_killed_run_goes_on_and_ends_with_the_same_model_bit_for_bit(tmp_path):
    main([*RUN, "--out", str(tmp_path / "whole")])
    [whole] = (tmp_path / "whole").iterdir()

    with subprocess.Popen([Path(sys.executable).parent / "nufed", *RUN, "--out", str(tmp_path / "killed")]) as process:
        killed = wait_for_rounds(tmp_path / "killed", 3)
        process.kill()
    had_ended = (killed / "summary.json").exists()
    code = main(["simulate", "--quiet", "--resume", str(killed)])

    assert not had_ended
    assert code == 0
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    rounds = [json.loads(line)["round"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(1, 41))
