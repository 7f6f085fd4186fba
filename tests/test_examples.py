"""The examples run as they stand, and every one of them is listed."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import nufed
from nufed.client.personal_model import load_personal_model
from nufed.deploy.simulation.in_process import simulate_in_process

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
SAID = {
    "quickstart": r"25 rounds\s+new",
    "torch_dataset": r"15 rounds, complete; participating accuracy",
    "hospitals_from_csv": r"ν = 3\s+new\s+1",
    "hugging_face": r"writer-5\s+new",
    "multi_label": r"at new hospitals: 0\.[67]\d before, 0\.8\d after",
    "segmentation": r"at new laboratories: 0\.[4-6]\d before, 0\.9\d after",
    "counts": r"at new stations: 1\.[78]\d bicycles before, 1\.[345]\d after",
    "variable_length": r"new accuracy [45]\d\.\d % → 9\d",
    "own_task": r"new concordance 0\.7\d+ → 0\.[78]",
    "new_site": r"after five steps on 40 images: accuracy [89]",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", SAID)
def test_a_script_runs_and_says_what_came_out(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.syspath_prepend(EXAMPLES)  # as of a script that Python is started with

    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")

    assert re.search(SAID[name], capsys.readouterr().out)


def test_the_bare_loop_learns_to_be_adapted(capsys):
    names = runpy.run_path(str(EXAMPLES / "meta_gradient.py"))

    names["main"](60)

    before, after = re.findall(r"after 3 steps ([\d.]+)", capsys.readouterr().out)
    assert float(after) < 0.95 * float(before)


def test_the_cells_of_the_notebook_run_in_their_order():
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}

    for cell in cells:
        exec(compile(cell, "quickstart.ipynb", "exec"), names)

    assert not any(cell.get("outputs") for cell in notebook["cells"])  # they would be another machine's
    assert isinstance(names["run"], nufed.Run)
    assert names["run"].summary["new"]["accuracy"][5] > 0.9


def test_the_flower_app_learns(monkeypatch, capsys):
    """Its strategy and its clients' meta-gradient are ours, everything else is the app's own."""
    monkeypatch.syspath_prepend(EXAMPLES / "flower_app")
    from sensors.client_app import app as client_app
    from sensors.server_app import app as server_app

    config = {"num-rounds": 5, "num-inner-steps": 3, "inner-lr": 0.1}
    simulate_in_process(server_app, client_app, num_nodes=6, run_config=config)

    losses = [float(text) for text in re.findall(r"\d+\.\d+", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.system
def test_adapters_alone_cross_the_line(monkeypatch, capsys):
    pytest.importorskip("peft")
    monkeypatch.setattr(sys, "argv", ["lora_over_grpc"])

    runpy.run_path(str(EXAMPLES / "lora_over_grpc.py"), run_name="__main__")

    said = capsys.readouterr().out
    before, after = map(float, re.search(r"([\d.]+) % before fine-tuning, ([\d.]+) % after two steps", said).groups())
    assert after > before + 2
    assert 0 < float(re.search(r"bytes on the wire ÷ full model: ([\d.]+)", said)[1]) < 0.1


@pytest.mark.system
def test_three_machines_are_rehearsed_on_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        [EXAMPLES / "three_machines" / "rehearse.sh", tmp_path / "here", str(port)],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (nufed.load_run(folder) for folder in (tmp_path / "here" / "runs").iterdir())
    assert run.summary["participating"]["num_clients"] == 2
    personal = load_personal_model(tmp_path / "here" / "personal-b.safetensors")
    assert personal.after.accuracy > 0.7
    assert len((tmp_path / "here" / "predictions.csv").read_text().splitlines()) == 81


def test_the_commands_of_the_three_machines_are_those_of_the_rehearsal():
    """What the guide tells on three machines is what the test has run."""
    folder = EXAMPLES / "three_machines"
    told = (folder / "README.md").read_text(encoding="utf-8")
    rehearsed = (folder / "rehearse.sh").read_text(encoding="utf-8")

    commands = "\n".join(re.findall(r"```bash\n(.*?)```", told, re.DOTALL))
    assert set(re.findall(r"--[a-z-]+", commands)) <= set(re.findall(r"--[a-z-]+", rehearsed))


@pytest.mark.parametrize("page", ["examples/README.md", "docs/examples.md"])
def test_every_example_is_listed(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    there = {path.name for path in EXAMPLES.iterdir() if path.name not in ("README.md", "__pycache__", "personal.pt")}

    assert [name for name in sorted(there) if name not in text] == []
