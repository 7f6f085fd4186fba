"""The tutorial and the page on Python are carried out as they stand; the project's files name one version."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from nufed.deploy.commands.cli import main

ROOT = Path(__file__).parent.parent
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
FILES = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', TUTORIAL, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line[2:]
    for block in re.findall(r"^```console\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.startswith("$ ")
]


@pytest.mark.system
@pytest.mark.timeout(900)
def test_every_command_of_the_tutorial_works_in_this_order(tmp_path):
    for name, text in FILES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MPLBACKEND": "agg"}

    script = "set -eu\n" + "\n".join(COMMANDS)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    runs = {path.name.split("-", 2)[2]: path for path in (tmp_path / "runs").iterdir()}
    assert {*runs} == {"first", "fedavg", "wards", "processes"}
    assert all((run / "model.safetensors").exists() for run in runs.values())
    rehearsed = tmp_path / "rehearsed"
    assert main(["simulate", "--config", str(tmp_path / "run.toml"), "--out", str(rehearsed), "--quiet"]) == 0
    models = [next(folder.glob("*-processes/model.safetensors")) for folder in (tmp_path / "runs", rehearsed)]
    assert models[0].read_bytes() == models[1].read_bytes(), "the page says: byte for byte"
    assert {"mine.safetensors", "late.safetensors", "late.pt2"} <= {path.name for path in tmp_path.iterdir()}


def test_every_block_of_the_page_on_python_works_in_this_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/in-python.md").read_text(encoding="utf-8")
    names: dict = {}

    for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "in-python.md", "exec"), names)

    assert names["after"].accuracy > names["before"].accuracy
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert torch.allclose(names["params"]["w"], torch.ones(3), atol=0.05)


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("CITATION.cff", r"^version: (\S+)$"),
        ("deploy/machines/compose.yaml", r"image: nufed-\w+:(\S+)"),
        ("deploy/machines/docker/Dockerfile", r"--tag nufed-\w+:(\S+)"),
        ("deploy/machines/kubernetes/client/kustomization.yaml", r"newTag: (\S+)"),
        ("deploy/machines/kubernetes/server/kustomization.yaml", r"newTag: (\S+)"),
        ("docs/deployment.md", r"nufed-(\d[\w.]*)-py3"),
        ("docs/index.md", r"nufed-(\d[\w.]*)-py3"),
        ("CHANGELOG.md", r"\A(?:.*?)^## \[(\d\S+)\]"),
    ],
)
def test_every_file_that_names_the_version_names_this_one(file, pattern):
    found = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)

    assert found
    assert set(found) == {VERSION}


def test_the_page_of_examples_shows_every_example():
    """As the site's snippets are written; a formatter of Python code in Markdown must not take them for Python."""
    page = (ROOT / "docs/examples.md").read_text(encoding="utf-8")

    shown = set(re.findall(r"^```python\n--8<--\n(.*)\n--8<--\n```$", page, flags=re.MULTILINE))

    programs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.py")}
    assert shown == {name for name in programs if not name.endswith("__init__.py")}


def test_the_site_begins_with_the_output_that_the_readme_shows():
    shown = [
        re.search(r"^```text\n(digits .*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for page in ("README.md", "docs/index.md")
    ]

    assert shown[0] is not None
    assert shown[1] is not None
    assert shown[0].group(1) == shown[1].group(1)


def test_decision_records_are_numbered_one_after_another_and_by_their_headings():
    records = sorted((ROOT / "docs/decisions").glob("*.md"))

    headings = [path.read_text(encoding="utf-8").splitlines()[0] for path in records]

    assert [path.name[:5] for path in records] == [f"{number:04}-" for number in range(1, len(records) + 1)]
    assert [heading.split(".")[0] for heading in headings] == [f"# {number}" for number in range(1, len(records) + 1)]


def test_every_decision_that_code_and_pages_name_exists():
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for folder in ("client", "common", "deploy", "docs", "nufed/library", "server", "strategy", "tests")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".md", ".toml", ".yaml")
        for name in re.findall(r"\b(\d{4}-[a-z][a-z-]*[a-z])\.md", path.read_text(encoding="utf-8"))
    }

    assert named
    assert {(file, name) for file, name in named if not (ROOT / f"docs/decisions/{name}.md").exists()} == set()


def test_the_loss_of_ones_own_runs_as_its_page_shows(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/your-own-task.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def deviance" in block)
    command = re.search(r"^\$ nufed (simulate .*python:claims:task)$", page, re.MULTILINE).group(1)
    (tmp_path / "claims.py").write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    assert main(command.split()) == 0
    assert "test sum-error" in capsys.readouterr().out
