"""What a machine refuses (space, folders, encodings, memory) ends a command in words, not in a traceback."""

import io
import json
import os
import re
import resource
import sqlite3
import subprocess
import sys
import types
from pathlib import Path

import pytest

from nufed.common.durable_file import write_text
from nufed.common.errors import ConfigError, RunError
from nufed.deploy.commands import cli, start
from nufed.deploy.commands.cli import main
from tests.deploy.commands.test_personal_cli import DIGITS, save_run_model

RUN = ["simulate", "--clients", "2", "--new-clients", "1", "--partition", "iid", "--rounds", "1", "--out", "runs"]


@pytest.fixture(autouse=True)
def _workshop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_run_model(tmp_path / "m.safetensors", DIGITS)
    (tmp_path / "text").write_text("no database")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE bookmarks (address)")
    connection.close()


@pytest.fixture
def full_disk():
    """No file can grow beyond 8 kB, which the system says as it says that a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def paragraph(capsys):
    """Return what was said on stderr, which is one line; signs of life of a slow machine do not count."""
    [printed] = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(" s so far")]
    assert printed.startswith("nufed: ")
    return printed


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("export --model m.safetensors --out big.pt2", "big.pt2"),
        ("export --model m.safetensors --out big.pt --format torchscript", "big.pt"),
        ("personalize --model m.safetensors --data digits#0/4 --steps 1 --out big.safetensors", "big.safetensors"),
        ("predict --model m.safetensors --data digits#0/4 --out big.csv", "big.csv"),
        (" ".join(RUN), "checkpoint.safetensors"),
    ],
)
def test_a_full_disk_is_said_and_leaves_no_half_of_a_file(full_disk, capsys, tmp_path, command, file):
    code = main(command.split())

    assert code == RunError.exit_code
    assert re.search(rf"Expected to write \S*{file}, but the system refused", paragraph(capsys))
    assert not list(tmp_path.rglob(f"*{file}*"))


UNWRITABLE = [
    ("report RUN --out /proc/r.html", "Expected to write /proc/r-figures"),
    ("report RUN --markdown /proc/r.md", "Expected to write /proc/r.md"),
    ("experiment two-groups-digits --seeds 1 --out /proc/e", "Expected to write /proc/e"),
    ("simulate --out /proc/e", "Expected to make the run's folder in /proc/e"),
    ("certs init --san a --out /proc/c", "Folder /proc/c cannot be made"),
    ("predict --model m.safetensors --data digits#0/4 --out /proc/p.csv", "Expected to write /proc/p.csv"),
    ("server --insecure --listen 127.0.0.1:0 --state /proc/x", "of /proc/x SQLite says"),
    ("server --insecure --listen 127.0.0.1:0 --state .", "of . SQLite says"),
    ("server --insecure --listen 127.0.0.1:0 --state text", "file is not a database"),
    ("server --insecure --listen 127.0.0.1:0 --state other.db", "another program's database (it has the table 'bookm"),
    ("server --insecure --listen 127.0.0.1:99999", "with a port below 65536, got '127.0.0.1:99999'"),
    ("server --insecure --listen 127.0.0.1:0 --health 127.0.0.1:65536", "a port below 65536, got '127.0.0.1:65536'"),
]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize(("command", "said"), UNWRITABLE)
def test_what_cannot_be_written_or_opened_is_named(capsys, command, said):
    if "RUN" in command:
        assert main([*RUN, "--quiet"]) == 0
        [run] = Path("runs").iterdir()
        command = command.replace("RUN", str(run))

    code = main(command.split())

    assert code == RunError.exit_code
    assert said in paragraph(capsys)


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("NUFED_DEVICE", "foo", " ".join(RUN)),
        ("NUFED_DEVICE", "cuda:99", "theory"),
        ("NUFED_DEVICE", "foo", "predict --model m.safetensors --data digits#0/4"),
        ("NUFED_NUM_THREADS", "many", "theory"),
        ("NUFED_DOWNLOAD", "2", "personalize --model m.safetensors --data digits#0/4"),
        ("NUFED_OUT", "", " ".join(RUN)),
        ("NUFED_DATA_ROOT", " ", " ".join(RUN)),
    ],
)
def test_a_wrong_variable_of_the_environment_is_named_by_every_command(monkeypatch, capsys, name, value, command):
    monkeypatch.setitem(os.environ, name, value)

    code = main(command.split())

    assert code == ConfigError.exit_code
    assert f"{name}={value!r}" in paragraph(capsys)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ([*RUN, "--out", ""], "--out"),
        ([*RUN, "--out="], "--out"),
        ([*RUN, "--data-root", " "], "--data-root"),
        (["server", "--resume="], "--resume"),
        (["certs", "init", "--san", "localhost", "--out", ""], "--out"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(tmp_path, monkeypatch, capsys, command, flag):
    monkeypatch.chdir(tmp_path)

    code = main(command)

    assert code == ConfigError.exit_code
    assert f"Expected a path behind {flag}, got an empty one" in paragraph(capsys)
    assert not list(tmp_path.glob("2*"))


class Refusing(io.RawIOBase):
    """A stream whose every write fails."""

    def __init__(self, error):
        self.error = error

    def writable(self):
        return True

    def write(self, _content):
        raise self.error


@pytest.mark.parametrize(
    ("number", "code", "said"), [(28, RunError.exit_code, "nufed: Expected to write to standard output"), (32, 141, "")]
)
def test_output_that_nobody_takes_costs_a_run_nothing_but_its_exit_code(monkeypatch, capsys, number, code, said):
    broken = io.TextIOWrapper(io.BufferedWriter(Refusing(OSError(number, os.strerror(number)))), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", broken)
        ended = main(RUN)
    broken.buffer.raw.write = len

    [run] = Path("runs").iterdir()
    assert ended == code
    assert json.loads((run / "summary.json").read_text())["status"] == "complete"
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("command", [RUN, ["simulate", "--help"], ["theory", "--L", "1", "--rho", "1", "--B", "1"]])
def test_an_output_that_lacks_greek_letters_gets_their_names(monkeypatch, command):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        code = main(command)

    assert code == 0
    assert re.search(r"nu = \d", stream.buffer.getvalue().decode("ascii"))


SHELL = [
    ("{nufed} options > /dev/full", RunError.exit_code, "nufed: Expected to write to standard output"),
    ("{nufed} options | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    ("PYTHONIOENCODING=ascii {nufed} methods", 0, ""),
    ("{nufed} models >&-", 0, ""),
]


@pytest.mark.system
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has /dev/full")
@pytest.mark.parametrize(("line", "code", "said"), SHELL)
def test_a_process_says_no_word_more_at_its_end(line, code, said):
    nufed = f"{sys.executable} -c 'import sys; from nufed.deploy.commands.start import main; sys.exit(main())'"

    done = subprocess.run(
        ["bash", "-c", line.format(nufed=nufed)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def test_ctrl_c_while_modules_are_imported_is_no_traceback(monkeypatch, capsys):
    class Interrupted(types.ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "nufed.deploy.commands.cli", Interrupted("cli"))

    code = start.main(["--version"])

    assert code == 130
    assert paragraph(capsys) == "nufed: Interrupted."


def test_ctrl_c_in_a_command_is_answered(monkeypatch, capsys):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("nufed.deploy.commands.cli.print_table", interrupt)

    code = start.main(["methods"])

    assert code == 130
    assert paragraph(capsys) == "nufed: Interrupted."


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            PermissionError(13, "Permission denied", "secrets"),
            RunError.exit_code,
            "use secrets, but the system refused",
        ),
        (OSError(24, "Too many open files"), RunError.exit_code, "refused (Too many open files)"),
        (MemoryError(), 1, "too little memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "too little memory"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_what_no_command_foresees_of_a_machine_is_one_paragraph_too(monkeypatch, capsys, error, code, said):
    def refuse(*_options):
        raise error

    monkeypatch.setattr(cli, "print_table", refuse)

    assert main(["models"]) == code
    if code != 130:
        assert said in paragraph(capsys)


def test_a_file_half_written_by_a_process_that_is_gone_is_removed(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left_over, in_use = (tmp_path / f".p.csv.{number}.part" for number in (int(gone.stdout), os.getppid()))
    foreign = tmp_path / ".p.csv.backup.part"
    for path in (left_over, in_use, foreign):
        path.write_text("half")

    write_text(tmp_path / "p.csv", "whole")

    assert [path.exists() for path in (left_over, in_use, foreign)] == [False, True, True]
