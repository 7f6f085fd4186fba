"""The deployment guide is carried out as it stands, on three machines that share nothing but a network.

Machines are network namespaces with a folder each, whose names are resolved as the guide writes them. A fence's info
string says where and how its block is run; a reader of the rendered page does not see it:

    ```bash server client-a          on each of these machines, one after the other
    ```bash server background        one command that goes on running
    ```bash server after=kill        after killing what runs there (`end`: it ends by itself, `stop`: Ctrl-C to all)
    ```text server                   lines that come up there, `…` standing for anything
    ```toml server run.toml          a file there

Packages do not come from the network: the installed copy of NuFed finds everything else in this environment.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import typer

from nufed.deploy.commands.cli import app
from tests.system.processes import ROOT, Process

GUIDE = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
MACHINES = {"server": "fl.example.org", "client-a": "client-a.example.org", "client-b": "client-b.example.org"}
SOURCE = "source"
LANGUAGES = ("bash", "text", "toml")
SIGNALS = {"stop": signal.SIGINT, "kill": signal.SIGKILL}
PATIENCE = 180.0

SCP = """#!/bin/bash
# Stands in for scp: HOST:PATH is a path in that machine's folder.
set -euo pipefail
paths=()
for word in "$@"; do
  case "$word" in
    *:*) paths+=("$MACHINES/${word%%:*}/${word#*:}") ;;
    *) paths+=("$word") ;;
  esac
done
exec cp -p "${paths[@]}"
"""


@dataclass(frozen=True)
class Block:
    """A fenced block and what its info string says."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def machines(self):
        return [word for word in self.words if word in MACHINES or word == SOURCE]

    @property
    def commands(self):
        """The lines of a block that is not run, one command each."""
        lines = self.text.replace("\\\n", "").splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def after(self):
        return next((word.removeprefix("after=") for word in self.words if word.startswith("after=")), None)


def blocks():
    found = re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return [
        Block(match[1], tuple(match[2].split()), match[3], GUIDE[: match.start()].count("\n") + 1) for match in found
    ]


def marked():
    return [block for block in blocks() if block.machines]


@dataclass
class Machine:
    """Holds a machine's folder, what its shell exported, what runs on it and what was said last."""

    name: str
    home: Path
    prefix: list[str]
    environment: dict[str, str]
    exports: list[str] = field(default_factory=list)
    running: list[Process] = field(default_factory=list)
    said: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)

    def script(self, text):
        return "\n".join(["set -euo pipefail", f"cd {self.home}", *self.exports, text])

    def do(self, block):
        """Run a block to its end, or start it and leave it running."""
        if block.after:
            self.end(block.after)
        if "background" in block.words:
            command = [*self.prefix, "bash", "-c", self.script(f"exec env {block.text}")]
            log = self.home / f"block-{block.line}.log"
            self.running.append(Process(command, log, env=self.environment))
            return
        done = subprocess.run(
            [*self.prefix, "bash", "-c", self.script(block.text)],
            env={
                **os.environ,
                **self.environment,
                **{f"HEARD_FROM_{name}": x for name, x in self.fingerprints.items()},
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        self.said = done.stdout + done.stderr
        assert done.returncode == 0, f"line {block.line}, on {self.name}:\n{block.text}\n{self.said}"
        self.exports += [line for line in block.text.splitlines() if line.startswith("export ")]
        for name, fingerprint in re.findall(r"request: +(\S+)\.csr .*\nfingerprint: (\S+)", self.said):
            self.fingerprints[name.upper().replace("-", "_")] = fingerprint

    def end(self, how):
        """End what was started last, or with `stop` everything that runs here."""
        for process in self.running if how == "stop" else self.running[-1:]:
            if how == "end":
                assert process.wait(PATIENCE) == 0, process.output
            elif process.popen.poll() is None:
                process.popen.send_signal(SIGNALS[how])
                process.wait(60)
            process.stop()
        del self.running[0 if how == "stop" else -1 :]

    def output(self):
        return "\n".join([self.said, *(process.output for process in self.running)])

    def await_lines(self, block):
        """Wait until every line came up; one of what runs here, or of what was run last."""
        deadline = time.monotonic() + PATIENCE
        missing = block.text.splitlines()
        while missing:
            missing = [line for line in missing if not re.search(_pattern(line), self.output(), re.MULTILINE)]
            assert not missing or time.monotonic() < deadline, (
                f"line {block.line}, on {self.name}: never came up: {missing}\n{self.output()}"
            )
            time.sleep(0.1)


def _pattern(line):
    return ".*".join(re.escape(part) for part in line.strip().split("…"))


def ip(*words):
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, timeout=30)


@pytest.fixture
def network():
    """A namespace for each machine on one switch; `/etc/netns` gives each the names of all."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    run = f"nufed-{os.getpid()}"
    hub, spaces = f"{run}-hub", {name: f"{run}-{name}" for name in MACHINES}
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(MACHINES, start=1)}
    try:
        try:
            ip("netns", "add", hub)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
        ip("-n", hub, "link", "add", "switch", "type", "bridge")
        ip("-n", hub, "link", "set", "switch", "up")
        for number, (name, space) in enumerate(spaces.items()):
            ip("netns", "add", space)
            ip("link", "add", f"port{number}", "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", hub, "link", "set", f"port{number}", "master", "switch", "up")
            ip("-n", space, "address", "add", f"{addresses[name]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
            names = Path("/etc/netns") / space / "hosts"
            names.parent.mkdir(parents=True)
            names.write_text("127.0.0.1 localhost\n" + "".join(f"{addresses[x]} {MACHINES[x]}\n" for x in MACHINES))
        yield spaces
    finally:
        for space in (*spaces.values(), hub):
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True, timeout=30)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)


@pytest.fixture
def machines(tmp_path, network):
    """The machines of the guide, and the one with the source, with their folders as the guide finds them."""
    programs, libraries, homes = tmp_path / "programs", tmp_path / "libraries", tmp_path / "machines"
    _provide_programs(programs)
    _provide_libraries(libraries)
    environment = {
        "PATH": f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(libraries),
        "MACHINES": str(homes),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    result, told = {}, {}  # what people tell each other by telephone, everybody knows
    for name, host in {**MACHINES, SOURCE: SOURCE}.items():
        home = homes / host
        home.mkdir(parents=True)
        prefix = ["ip", "netns", "exec", network[name]] if name in network else []
        result[name] = Machine(name, home, prefix, {**environment, "HOME": str(home)}, fingerprints=told)
    _copy_source(result[SOURCE].home)
    for number, (name, table) in enumerate([("a", "patients"), ("b", "patients"), ("b", "outpatients")]):
        _write_patients(result[f"client-{name}"].home / f"{table}.csv", seed=number)
    try:
        yield result
    finally:
        for process in (process for machine in result.values() for process in machine.running):
            process.stop()


def _provide_programs(folder):
    folder.mkdir()
    (folder / "scp").write_text(SCP)
    (folder / "scp").chmod(0o755)
    (folder / "python3").symlink_to(Path(sys.base_prefix) / "bin" / Path(sys.executable).resolve().name)
    for program in Path(sys.executable).parent.glob("fl*"):
        (folder / program.name).symlink_to(program)


def _provide_libraries(folder):
    """Link everything that is installed here but NuFed itself, which the guide installs."""
    folder.mkdir()
    for path in Path(np.__file__).parents[1].iterdir():
        if "nufed" not in path.name:
            (folder / path.name).symlink_to(path)


def _copy_source(folder):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _write_patients(path, *, seed):
    """Write a table that is this client's own: what makes ill differs between clients."""
    draws = np.random.default_rng(seed)
    age, pressure, cholesterol = draws.normal([60, 130, 240], [9, 15, 40], size=(120, 3)).T
    sex = draws.choice(["f", "m"], 120)
    risk = (age - 60) / 9 + (seed + 1) * (pressure - 130) / 15 + (cholesterol - 240) / 40
    rows = zip(age, pressure, cholesterol, sex, np.where(risk > 0, "ill", "healthy"), strict=True)
    lines = [f"{a:.0f},{p:.0f},{c:.0f},{s},{diagnosis}" for a, p, c, s, diagnosis in rows]
    path.write_text("\n".join(["age,pressure,cholesterol,sex,diagnosis", *lines]) + "\n")


@pytest.mark.system
@pytest.mark.timeout(1200)
def test_the_guide_leads_from_empty_machines_to_its_end(machines):
    for block in marked():
        for machine in (machines[name] for name in block.machines):
            if block.language == "toml":
                (machine.home / block.words[1]).write_text(block.text, encoding="utf-8")
            elif block.language == "text":
                machine.await_lines(block)
            else:
                machine.do(block)

    server, client = machines["server"].home, machines["client-a"].home
    secrets = [path.read_bytes() for name in ("client-a", "client-b") for path in machines[name].home.glob("*.key")]
    held = [path.read_bytes() for path in server.rglob("*") if path.is_file() and "nufed" not in path.parts]
    assert len(secrets) == 3
    assert not any(secret in content or b"OPENSSH PRIVATE KEY" in content for secret in secrets for content in held)
    assert not [*server.rglob("*.csv")] or all("runs" in path.parts for path in server.rglob("*.csv"))
    assert (client / "hospital-a.key").stat().st_mode & 0o077 == 0
    assert not (server / "certs/ca.key").exists()


def test_every_block_of_commands_says_where_it_is_run():
    unmarked = [block.line for block in blocks() if block.language == "bash" and not block.machines]

    assert not unmarked
    assert all((ROOT / path).exists() for path in re.findall(r"`(deploy/[\w/.-]+|tests/[\w/.-]+)`", GUIDE))
    assert {block.language for block in marked()} <= {*LANGUAGES}
    assert {word for block in marked() for word in block.machines} == {*MACHINES, SOURCE}


@pytest.mark.parametrize("line", sorted({line for b in blocks() if b.language == "console" for line in b.commands}))
def test_commands_for_supervisors_name_what_exists(line):
    """They need Docker, a cluster or systemd as the first process, which tests do without."""
    program, *arguments = shlex.split(line)
    files = [word for word in arguments if word.startswith("deploy/") and "/federation" not in word]

    assert program in (
        "install",
        "nufed",
        "systemctl",
        "journalctl",
        "groupadd",
        "printf",
        "mkdir",
        "cp",
        "kubectl",
    ) or (program.startswith("NUFED_USER="))
    assert all(list(ROOT.glob(word)) for word in files)
    if program == "nufed":
        group, command, *rest = arguments
        typer.main.get_command(app).commands[group].commands[command].make_context(command, rest)


def test_a_guide_that_rots_is_noticed(tmp_path):
    """The machinery itself can fail: a wrong command, a line that never comes."""
    machine = Machine("server", tmp_path, [], {"HOME": str(tmp_path)})

    machine.do(Block("bash", ("server",), "echo one two three", 1))
    machine.await_lines(Block("text", ("server",), "one … three", 2))

    with pytest.raises(AssertionError, match="line 3"):
        machine.do(Block("bash", ("server",), "false", 3))
