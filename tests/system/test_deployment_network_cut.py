"""A network that is away without a word, and comes back: the round goes on, and so does the client."""

import os
import secrets
import shutil
import subprocess
import time

import pytest

from tests.system.processes import QUICK, faulty_clients, nufed, processes, round_records

CUT = 100.0
"""Seconds; longer than any timeout that could hide the cut."""


def may_make_namespaces():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"nufed-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True).returncode != 0:
        return False
    subprocess.run(["ip", "netns", "del", name], check=True)
    return True


pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not may_make_namespaces(), reason="network namespaces need root and iproute2"),
]


@pytest.fixture
def network():
    """A namespace joined to this machine by a link of its own: (prefix of commands in it, server's IP, cut, mend)."""
    token = secrets.token_hex(3)
    namespace, here, there = f"nufed-{token}", f"nfh{token}", f"nft{token}"
    subnet = f"10.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    ip("netns", "add", namespace)
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", namespace)
        ip("addr", "add", f"{subnet}.1/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", namespace, "addr", "add", f"{subnet}.2/24", "dev", there)
        ip("-n", namespace, "link", "set", there, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        yield (
            ["ip", "netns", "exec", namespace],
            f"{subnet}.1",
            lambda: ip("link", "set", here, "down"),
            lambda: ip("link", "set", here, "up"),
        )
    finally:
        ip("netns", "del", namespace)


def test_a_client_whose_network_was_away_takes_part_again(network, tmp_path):
    """Cut for 100 s without a reset: the rounds go on without it, and it comes back by itself."""
    prefix, host, cut, mend = network

    with processes(tmp_path) as start:
        quick = [*QUICK, "--clients", 2, "--rounds", 100_000, "--round-timeout", 60, "--out", tmp_path / "out"]
        server = start("server", *nufed("server", "--listen", f"{host}:9092", "--insecure", *quick))
        start("near", *faulty_clients(f"{host}:9092", 0))
        far = start("far", *faulty_clients(f"{host}:9092", 1), prefix=prefix)
        _until(lambda: _replied(tmp_path / "out") == 2)
        cut()
        server.wait_for("client-001 left")
        _until(lambda: _replied(tmp_path / "out") == 1)
        time.sleep(CUT)  # the cut itself: what is tested is that it may last
        mend()
        _until(lambda: _replied(tmp_path / "out") == 2)
        server.popen.terminate()
        server.wait(60)

    records = round_records(tmp_path / "out")
    assert all(record["sampled"] == record["replied"] + record["failed"] + record["missing"] for record in records)
    assert sum(record["failed"] + record["missing"] for record in records) <= 1
    assert "is lost" in far.output


def _replied(out):
    """How many replied in the last round; 0 before the first."""
    try:
        return round_records(out)[-1]["replied"]
    except (ValueError, IndexError, FileNotFoundError):
        return 0


def _until(condition, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
