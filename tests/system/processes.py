"""Processes of a federation, started and watched by tests; each ends with its test, by its own id."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from tests.system.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
SMALL_RUN = ["--new-clients", "0", "--fraction", "1", "--model", "linear", "--local-steps", "2"]
QUICK = ["--set", "evaluation.interval=0", *SMALL_RUN]


class Process:
    """A started process and the file that its output goes to; `python -m …` begins with its imports done."""

    def __init__(self, command, log, *, env=None):
        self.log = Path(log)
        self.log.write_bytes(b"")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **(env or {})}
        if [*command[:2]] == [sys.executable, "-m"]:
            self.popen = Forked(command[2], command[3:], log=self.log, environment=environment)
            return
        with self.log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def wait_for(self, text, seconds=90.0):
        """Return the first line of output with `text`; the process may not end before."""
        deadline = time.monotonic() + seconds
        while True:
            ended = self.popen.poll() is not None
            for line in self.output.splitlines():
                if text in line:
                    return line
            assert not ended, f"ended with {self.popen.returncode} before {text!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {text!r} within {seconds} s:\n{self.output}"
            time.sleep(0.05)

    def wait(self, seconds=120.0):
        """Return the exit code."""
        try:
            return self.popen.wait(seconds)
        except (subprocess.TimeoutExpired, TimeoutError):
            raise AssertionError(f"did not end within {seconds} s:\n{self.output}") from None

    def kill(self):
        """End the process as a power cut does."""
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(20)

    def stop(self):
        """End the process and what it started, if they still run."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.popen.pid, number)
                self.popen.wait(15)
            except ProcessLookupError:
                break
            except (subprocess.TimeoutExpired, TimeoutError):
                continue


@contextmanager
def processes(tmp_path):
    """A function that starts a process: `start(name, *command, prefix=(), env=None)`; all end with the block."""
    running = []

    def start(name, *command, prefix=(), env=None):
        process = Process([*prefix, *command], tmp_path / f"{name}.log", env=env)
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in reversed(running):
            process.stop()


def nufed(command, *arguments):
    """A command line of `nufed server` or `nufed client`."""
    return [sys.executable, "-m", command, *map(str, arguments)]


def faulty_clients(server, *specs, security=(), start_when=None):
    """A command line of clients in one process: `PARTITION[:FAULT]` each (see faulty_clients)."""
    waits = ["--start-when", str(start_when)] if start_when else []
    return [
        sys.executable,
        "-m",
        "tests.system.faulty_clients",
        "--server",
        server,
        *map(str, security),
        *waits,
        *map(str, specs),
    ]


def address_of(server):
    """The address that a started `nufed server` listens on."""
    return server.wait_for("listening on ").split("listening on ")[1].split()[0]


def free_address():
    """An address on the loopback interface that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run_folder(out):
    """The one run folder in a folder."""
    (folder,) = [path for path in Path(out).iterdir() if path.is_dir()]
    return folder


def round_records(out):
    """What a run wrote down about its rounds."""
    lines = (run_folder(out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
