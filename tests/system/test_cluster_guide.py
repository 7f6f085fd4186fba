"""docs/cluster.md is carried out as it stands, on two machines that share a network and nothing else.

A machine is a shell in namespaces of its own: network, processes (so that `ray stop` stops its own alone) and mounts,
with an empty home and an empty folder for temporary files, where Ray notes its clusters. Fences say where they run, as
in the deployment guide: ```bash head, ```text head.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.system.test_deployment_guide import ROOT, ip

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

GUIDE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
MACHINES = ("head", "node")
DONE = "=== done, with status "


def blocks():
    """Return (language, machines, text) of the guide's blocks that are run or read."""
    found = re.finditer(r"^```(\w+) ([^\n]+)\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    return [(match[1], match[2].split(), match[3]) for match in found]


class Machine:
    """Holds a shell, and what its last command said."""

    def __init__(self, namespace, home):
        for name in ("home", "tmp"):
            (home / name).mkdir(parents=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            "PATH": path,
            "HOME": "/mnt",
            "TMPDIR": "/mnt/tmp",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # another priority than other programs' would make it last
            "PYTHONPATH": str(ROOT),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        self._shell = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "unshare", "-pmf", "--mount-proc", "--kill-child", "bash"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said = self.do(
            f"mount --bind {home} /mnt && mkdir -p /tmp/ray && mount -t tmpfs tmpfs /tmp/ray && cd /mnt/home"
        )

    def do(self, text):
        """Run commands and return what they said."""
        self._shell.stdin.write(f'{text}\necho "{DONE}$?"\n')
        self._shell.stdin.flush()
        lines = []
        for line in self._shell.stdout:
            if line.startswith(DONE):
                assert line.strip() == f"{DONE}0", f"{text}\n{''.join(lines)}"
                break
            lines.append(line)
        else:
            raise AssertionError(f"the shell ended: {text}\n{''.join(lines)}")
        self.said = "".join(lines)
        return self.said

    def end(self):
        """End the shell and all that was started in it."""
        self._shell.stdin.close()
        self._shell.kill()
        self._shell.stdout.close()
        self._shell.wait(30)


@pytest.fixture
def machines(tmp_path):
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("namespaces need root, iproute2 and util-linux")
    run = f"nufed-ray-{os.getpid()}"
    spaces, result = {name: f"{run}-{name}" for name in MACHINES}, {}
    try:
        for space in spaces.values():
            try:
                ip("netns", "add", space)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
            names = Path("/etc/netns") / space / "hosts"
            names.parent.mkdir(parents=True)
            names.write_text("127.0.0.1 localhost\n10.78.0.1 head\n10.78.0.2 node\n")
        ip(
            "link",
            "add",
            "eth0",
            "netns",
            spaces["head"],
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            spaces["node"],
        )
        for number, (name, space) in enumerate(spaces.items(), start=1):
            ip("-n", space, "address", "add", f"10.78.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
            result[name] = Machine(space, tmp_path / name)
        yield result
    finally:
        for machine in result.values():
            machine.end()
        for space in spaces.values():
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True, timeout=30)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)


def test_the_guide_leads_from_two_machines_to_its_end(machines, tmp_path):
    for language, where, text in blocks():
        for machine in (machines[name] for name in where):
            if language == "bash":
                machine.do(text)
            for line in text.splitlines() if language == "text" else ():
                assert re.search(r"\s+".join(map(re.escape, line.split())), machine.said), machine.said

    home = tmp_path / "head/home"
    cells = [*home.glob("results/smoke/cells/*/done.json")]
    assert len(cells) == 4 + 2
    for name in ("here", "at-once"):
        assert [*home.glob(f"{name}/*/model.safetensors")], name
    assert not [*(tmp_path / "node/home").iterdir()]


def test_every_block_of_commands_says_where_it_is_run():
    unmarked = re.findall(r"^```bash *$", GUIDE, re.MULTILINE)

    assert not unmarked
    assert {name for _, where, _ in blocks() for name in where} == {*MACHINES}
