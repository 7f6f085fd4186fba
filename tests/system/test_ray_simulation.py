"""The Ray engine: what the apps see, what failures look like, and that nothing stays behind."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.system.process_tree import wait_until_ended
from tests.system.ray_toy import NUM_NODES, RUN_CONFIG

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    sys.executable,
    "-c",
    "import sys; from tests.system.ray_toy import COMMANDS as c; c[sys.argv[1]](*sys.argv[2:])",
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    path = tmp_path_factory.mktemp("ray") / "seen"
    environment = {**os.environ, "NUFED_DATA_ROOT": "some folder"}
    subprocess.run([*COMMAND, "record", str(path)], cwd=ROOT, env=environment, check=True, timeout=120)
    return pickle.loads(path.read_bytes())


def test_both_apps_see_the_runs_configuration(seen):
    """Flower's own Python entry gives them an empty one."""
    assert seen["ray"]["config"] == RUN_CONFIG
    assert all(RUN_CONFIG.items() <= context.items() for context in seen["ray"]["contexts"])


def test_clients_know_their_partition(seen):
    """Client i of n has partition-id i, once each."""
    partitions = sorted((context["partition-id"], context["num-partitions"]) for context in seen["ray"]["contexts"])

    assert partitions == [(i, NUM_NODES) for i in range(NUM_NODES)]


def test_actors_inherit_the_settings_of_this_machine(seen):
    """NUFED_* variables reach the clients, which run in other processes."""
    assert {context["root"] for context in seen["ray"]["contexts"]} == {"some folder"}
    assert seen["pid"] not in {context["pid"] for context in seen["ray"]["contexts"]}


def test_replies_are_those_of_the_in_process_engine(seen):
    """Arrays, states that are kept, states rolled back and error replies are the same, whichever actor ran whom."""
    assert seen["ray"]["rounds"] == seen["in process"]["rounds"]


def test_a_client_that_raises_fails_alone(seen):
    """Its error reply says what it raised."""
    failed = [reply for reply in seen["ray"]["rounds"][1].values() if isinstance(reply[0], int)]

    assert [reason for _, reason in failed] == ["<class 'ValueError'>:<'boom in client'>"]


def test_phases_cut_short_do_not_disturb_the_next(seen):
    """Every client is asked again, and actors that still worked for nobody come back to the pool."""
    partitions = sorted(context["partition-id"] for context in seen["ray"]["after phases cut short"])

    assert partitions == list(range(NUM_NODES))
    assert seen["ray"]["actors after phases cut short"] >= {context["pid"] for context in seen["ray"]["contexts"]}


def test_no_process_stays_behind(seen):
    """Ray's processes have ended soon after the run."""
    assert seen["ray"]["processes"]
    assert wait_until_ended(seen["ray"]["processes"])


def test_the_process_is_as_before(seen):
    """Our variables and Ray's handler of SIGTERM are taken back; Ray itself leaves its own and PYTHONBREAKPOINT."""
    left = {name for name in seen["changed variables"] if not name.startswith("RAY_")}

    assert left <= {"PYTHONBREAKPOINT"}
    assert seen["handler is as before"]


@pytest.fixture(scope="module")
def interrupted():
    """Return what a run that meets errors and then Ctrl-C has said, but for what Ray itself tells of dead actors."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, "sleep"], cwd=ROOT, start_new_session=True, **pipes) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.replace(" ", "").strip().isdecimal():
                break
        os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    children = list(map(int, lines.pop().split()))
    before, after = ([line for line in each if "(raylet)" not in line] for each in (lines, said.splitlines(True)))
    return SimpleNamespace(before=before, children=children, after=after, errors=errors, process=process)


def test_errors_say_what_they_said_where_they_were_raised(interrupted):
    """What a client, the ServerApp and the engine explain is what it is; the run may go on after it."""
    client, server, death = interrupted.before
    assert client == "DataError: client-003 has no examples; lower data.num-clients\n"
    assert server == "RunError: Expected no Ray in this process, but it is running. Call ray.shutdown() first.\n"
    assert death.startswith("RunError: Expected client of partition 0 to take its turn, but 2 actors have ended in it")
    assert interrupted.errors == ""


def test_ctrl_c_reaches_the_server_app_and_ends_the_actors(interrupted):
    """The ServerApp can still write what there is; busy actors are not waited for."""
    assert interrupted.after == ["the interrupted run is written down\n"]
    assert interrupted.process.returncode == 130
    assert interrupted.children
    assert wait_until_ended(interrupted.children)
