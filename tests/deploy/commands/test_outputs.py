"""No command writes over what it reads, or over anything that is there unless it was told to."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nufed.common.errors import ConfigError
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import load_model
from tests.deploy.commands.test_personal_cli import DIGITS, TABLE, save_run_model

SUITE = """
name = "tiny"
title = "two methods"
seeds = 1
reference = "fedavg"
baseline = "one"
options = { "data.num-clients" = 2, "data.num-new-clients" = 1, "data.partition" = "iid", "federation.num-rounds" = 1 }
methods = [{ name = "fedavg", preset = "fedavg" }, { name = "one", preset = "per-fedavg" }]
"""


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """Files of every kind that a command reads or finds: models, data, a run's folder, an experiment's."""
    here = tmp_path_factory.mktemp("outputs")
    save_run_model(here / "digits.safetensors", DIGITS)
    save_run_model(here / "table.safetensors", TABLE)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(60, 9, 40).round(2), "sex": rng.choice(["f", "m"], 40)})
    frame["y"] = np.where(frame["age"] > 60, "yes", "no")
    frame.to_csv(here / "t.csv", index=False)
    (here / "suite.toml").write_text(SUITE)
    (here / "notes").mkdir()
    (here / "notes" / "diary.txt").write_text("mine")
    (here / "own_data.py").write_text("def data(): ...\n")
    for name, kind in (("scans", "cat"), ("scans", "dog")):
        (here / name / kind).mkdir(parents=True)
        (here / name / kind / "1.png").write_bytes(b"pixels")
    run = ["simulate", "--quiet", "--clients", "2", "--new-clients", "1", "--rounds", "1", "--partition", "iid"]
    assert main([*run, "--out", str(here / "runs")]) == 0
    [folder] = (here / "runs").iterdir()
    folder.rename(here / "run")
    shutil.rmtree(here / "runs")
    return here


@pytest.fixture
def workplace(furnished, tmp_path, monkeypatch):
    shutil.copytree(furnished, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    Path("link.csv").symlink_to("t.csv")
    os.link("t.csv", "same.csv")
    Path("elsewhere.csv").symlink_to("missing.csv")
    Path("folder-link").symlink_to("run")
    os.link("run/summary.json", "page.html")
    return Path()


def contents(folder):
    """Return path -> bytes of every file below a folder."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


PERSONALIZE = "personalize --model table.safetensors --data csv:t.csv?label=y"
PREDICT = "predict --model table.safetensors --data csv:t.csv"
EXPORT = "export --model table.safetensors"
CLIENT = "client --server 127.0.0.1:1 --name a --insecure --wait 0 --data csv:t.csv?label=y"

READ = [
    *(f"{PREDICT} --out {name}" for name in ("t.csv", "./t.csv", "notes/../t.csv", "link.csv", "same.csv")),
    *(f"{command} --out table.safetensors" for command in (PREDICT, PERSONALIZE, EXPORT)),
    "export --model run --out run/model.safetensors",
    "export --model run --out folder-link/model.safetensors",
    "export --model folder-link/model.safetensors --out run/model.safetensors",
    "predict --model digits.safetensors --data images:scans --out scans/cat/new.csv",
    "predict --model digits.safetensors --data python:own_data:data --out own_data.py",
    "report run --out page.html",
]
EXISTING = [
    f"{PREDICT} --out suite.toml",
    f"{PREDICT} --out elsewhere.csv",
    f"{PERSONALIZE} --out digits.safetensors",
    f"{EXPORT} --out digits.safetensors",
    "report run --out other.html",
    "report run --out new.html",
]
OTHER_KIND = [
    (f"{PREDICT} --out notes", "is a folder"),
    (f"{EXPORT} --out /dev/null", "is a device or a pipe"),
    (f"{PERSONALIZE} --out nowhere/p.safetensors", "in a folder that exists"),
    ("experiment suite.toml --out run", "holds something other than an experiment"),
    ("experiment suite.toml --out notes", "something other than an experiment (diary.txt)"),
    ("experiment suite.toml --out .", "holds something other than an experiment"),
    ("experiment suite.toml --out t.csv", "but t.csv is a file"),
    ("experiment suite.toml --out experiment", "holds the experiment 'other', and this is 'tiny'"),
    ("report run --out run/summary.json", "Let it end in .html"),
    ("report run --out notes", "Let it end in .html"),
    ("report run --markdown t.csv", "Let it end in .md"),
    ("report run --markdown latin.md", "Expected UTF-8 text in latin.md"),
    (f"{CLIENT} --personal-model t.csv", "exists and is no personal model"),
    (f"{CLIENT} --personal-model table.safetensors", "exists and is no personal model"),
    (f"{CLIENT} --personal-model notes", "to name a file"),
    (f"{CLIENT} --personal-model b.safetensors", "is the personal model of 'b', and this is client 'a'"),
]


@pytest.mark.parametrize("command", [*READ, *(f"{command} --force" for command in READ)])
def test_what_is_read_is_never_written_over(workplace, capsys, command):
    before = contents(workplace)

    code = main(command.split())

    assert code == ConfigError.exit_code
    assert "is read by this command" in capsys.readouterr().err
    assert contents(workplace) == before


@pytest.mark.parametrize("command", EXISTING)
def test_what_is_there_is_replaced_by_force_alone(workplace, capsys, command):
    Path("other.html").write_text("mine")
    Path("new-figures").mkdir()
    before = contents(workplace)

    refused = main(command.split()), capsys.readouterr().err, contents(workplace)
    forced = main([*command.split(), "--force"])

    assert refused[0] == ConfigError.exit_code
    assert "--force" in refused[1]
    assert refused[2] == before
    assert forced == 0
    assert contents(workplace) != before


@pytest.mark.parametrize(("command", "said"), OTHER_KIND)
def test_a_folder_or_file_of_another_kind_stays_as_it_is(workplace, capsys, command, said):
    Path("latin.md").write_bytes(b"\xe9t\xe9")
    Path("experiment/cells").mkdir(parents=True)
    Path("experiment/experiment.json").write_text('{"suite": {"name": "other"}}')
    assert main([*f"{PERSONALIZE} --name b --out b.safetensors".split()]) == 0
    before = contents(workplace)

    code = main(command.split())

    assert code == ConfigError.exit_code
    assert said in capsys.readouterr().err
    assert contents(workplace) == before


def test_a_client_replaces_its_own_personal_model(workplace, capsys):
    main([*PERSONALIZE.split(), "--name", "a", "--out", "mine.safetensors"])

    main([*CLIENT.split(), "--personal-model", "mine.safetensors"])

    assert "No server could be reached" in capsys.readouterr().err


def test_a_report_and_its_sections_are_made_anew_in_their_own_places(workplace, capsys):
    Path("results.md").write_text("# Mine\n\nstays\n")

    codes = [main(["report", "run", "--markdown", "results.md"]) for _ in range(2)]

    text = Path("results.md").read_text()
    assert codes == [0, 0]
    assert text.startswith("# Mine\n\nstays\n")
    assert text.count("<!-- begin run -->") == 1


def test_a_file_that_may_be_replaced_by_its_link_leaves_what_it_led_to(workplace):
    Path("link.safetensors").symlink_to("digits.safetensors")

    code = main([*f"{EXPORT} --out link.safetensors --force".split()])

    assert code == 0
    assert load_model(Path("digits.safetensors"))


CERTIFICATES = ["certs", "init", "--san", "localhost", "--out", "certs"]


@pytest.mark.parametrize("lost", [["ca.key"], ["ca.crt"], ["ca.key", "ca.crt"]])
def test_certificates_that_cannot_be_made_again_are_replaced_by_force_alone(workplace, capsys, lost):
    main(CERTIFICATES)
    for name in lost:
        Path("certs", name).unlink()
    before = contents(Path("certs"))

    refused = main(CERTIFICATES), contents(Path("certs"))
    forced = main([*CERTIFICATES, "--force"])

    assert refused == (ConfigError.exit_code, before)
    assert "type --force" in capsys.readouterr().err
    assert forced == 0


def test_a_server_certificate_is_renewed_by_its_own_authority_and_that_is_said(workplace, capsys):
    main(CERTIFICATES)
    before = contents(Path("certs"))

    code = main(CERTIFICATES)

    after = contents(Path("certs"))
    assert code == 0
    assert "the earlier server certificate is replaced" in capsys.readouterr().out
    assert {path.name for path in before if after[path] != before[path]} == {"server.crt", "server.key"}
