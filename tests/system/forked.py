"""A process that begins with its imports done: a copy of one that has imported the product, and nothing else.

Importing PyTorch and Flower takes a process three seconds of a processor, and the tests start a hundred. What a copy
does is what `python -m MODULE` does: own process group, environment, files and signals. The guides' tests start
programs as their readers do.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLI = "tests.system.command_line"
"""`python -m` this is `nufed`."""
PRELOADED = [
    "tests.system.forked",
    "nufed.client.app",
    "nufed.deploy.commands.cli",
    "nufed.deploy.network.direct_client",
    "nufed.deploy.network.direct_server",
    "nufed.server.app",
]

_context = multiprocessing.get_context("forkserver")


class Forked:
    """A started `python -m MODULE ARGUMENTS…`, with what `subprocess.Popen` has of it.

    What it prints goes to the file `log`; what it prints on stderr to `errors`, if that is given.
    """

    def __init__(self, module, arguments, *, log, environment, errors=None, folder=ROOT):
        _begin()
        entry = (module, [str(word) for word in arguments], str(log), str(errors or log), environment, str(folder))
        self._process = _context.Process(target=_run, args=entry, daemon=False)
        self._process.start()
        self.pid = self._process.pid
        self._wait_for_its_group()

    def _wait_for_its_group(self):
        """Wait until signals to the process group reach it."""
        try:
            while os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)  # polls the system's processes
        except ProcessLookupError:
            return

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        """Return the exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout=None):
        """Return the exit code.

        Raises:
            TimeoutError: it still runs.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError
        return self._process.exitcode

    def send_signal(self, number):
        """Send a signal, if it still runs."""
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self):
        """End it as `kill PID` does."""
        self.send_signal(signal.SIGTERM)


def _begin():
    """Start the process that is copied, once, with one thread for PyTorch and the project's root on its path."""
    if getattr(forkserver._forkserver, "_forkserver_pid", None):
        return
    own = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    os.environ.update(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    try:
        _context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        for name, value in own.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _run(module, arguments, log, errors, environment, folder):
    """Become `python -m module arguments`."""
    os.setsid()
    for path, number in ((log, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(write_through=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path[:] = list(dict.fromkeys([folder, str(ROOT), *filter(None, sys.path)]))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
