"""Whatever a client, the network or the server does, a run goes on, counts it, and names it; nothing hangs."""

import pytest

from nufed.common.errors import RunError
from nufed.deploy.network.certificates import CertificateFolder, add_client, create_authority
from tests.system.processes import (
    QUICK,
    address_of,
    faulty_clients,
    free_address,
    nufed,
    processes,
    round_records,
    run_folder,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]


@pytest.fixture
def start(tmp_path):
    with processes(tmp_path) as start:
        yield start


def server(start, out, *options, num_clients, listen="127.0.0.1:0", name="server", security=("--insecure",)):
    quick = [*QUICK, "--clients", num_clients, "--out", out, *options]
    return start(name, *nufed("server", "--listen", listen, *security, *quick))


def counts(record):
    return {key: record[key] for key in ("replied", "rejected", "failed", "missing")}


def test_bad_replies_are_counted_named_and_leave_no_trace_in_the_model(start, tmp_path):
    rounds = ["--rounds", 2]
    faults = ["raise", "nan", "inf", "shape", "names", "huge"]
    specs = ["0", "1", *(f"{index}:{fault}" for index, fault in enumerate(faults, start=2))]

    with_bad = server(start, tmp_path / "with", *rounds, num_clients=8)
    start("all", *faulty_clients(address_of(with_bad), *specs))
    assert with_bad.wait() == 0
    without = server(start, tmp_path / "without", *rounds, "--min-clients", 2, num_clients=8, name="reference")
    start("good", *faulty_clients(address_of(without), "0", "1"))
    assert without.wait() == 0

    for record in round_records(tmp_path / "with"):
        assert counts(record) == {"replied": 2, "rejected": 5, "failed": 1, "missing": 0}
        assert len(record["problems"]) == 6
        assert any("this client is broken" in reason for reason in record["problems"].values())
        assert any("NaN" in reason for reason in record["problems"].values())
        assert any("shape" in reason for reason in record["problems"].values())
    spoilt, clean = (run_folder(tmp_path / name) / "model.safetensors" for name in ("with", "without"))
    from nufed.server.run_folder import load_model

    assert all((load_model(spoilt)[0][name] == value).all() for name, value in load_model(clean)[0].items())


def test_a_round_goes_on_without_a_client_that_was_killed_in_it(start, tmp_path):
    """The dead client is noticed by its silence, long before the round's time is up."""
    options = ["--rounds", 3, "--round-timeout", 25]

    serving = server(start, tmp_path / "out", *options, num_clients=3)
    address = address_of(serving)
    start("good", *faulty_clients(address, "0", "1"))
    start("victim", *faulty_clients(address, "2:die@2"))

    assert serving.wait() == 0
    records = round_records(tmp_path / "out")
    assert [counts(record)["replied"] for record in records] == [3, 2, 2]
    assert counts(records[1])["failed"] == 1
    assert records[2]["sampled"] == 2
    assert "client-002 left" in serving.output


def test_a_client_killed_and_restarted_gets_its_message_again_under_tls(start, tmp_path):
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, ["127.0.0.1"])
    keys = [add_client(folder, name) for name in ("client-000", "client-001")]
    roots = ["--root-certificates", folder.authority_certificate]

    security = ("--certificates", folder.root)
    serving = server(start, tmp_path / "out", "--rounds", 3, num_clients=2, security=security)
    address = address_of(serving)
    start("a", *faulty_clients(address, "0", security=[*roots, "--key", keys[0]]))
    security = [*roots, "--key", keys[1]]
    heir = start("heir", *faulty_clients(address, "1", security=security, start_when=tmp_path / "go"))
    heir.wait_for("ready")
    victim = start("victim", *faulty_clients(address, "1:die@2", security=security))
    assert victim.wait() < 0
    (tmp_path / "go").touch()

    assert serving.wait() == 0
    records = round_records(tmp_path / "out")
    assert [counts(record)["replied"] for record in records] == [2, 2, 2]


def test_a_client_slower_than_the_round_is_missing_once_and_not_waited_for_again(start, tmp_path):
    """It costs the time of one round: until it asks for work again, the others go on without it."""
    options = ["--rounds", 8, "--round-timeout", 4]

    serving = server(start, tmp_path / "out", *options, num_clients=2)
    address = address_of(serving)
    start("good", *faulty_clients(address, "0"))
    start("slow", *faulty_clients(address, "1:sleep@2"))

    assert serving.wait() == 0
    records = round_records(tmp_path / "out")
    assert [record["missing"] for record in records] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert [record["sampled"] for record in records] == [2, 2, 1, 1, 1, 1, 1, 1]
    assert "client-001 still works on an earlier message" in serving.output


def test_clients_that_come_before_the_server_wait_for_it(start, tmp_path):
    address = free_address()

    waiting = start("clients", *faulty_clients(address, "0", "1"))
    waiting.wait_for("no server at")
    serving = server(start, tmp_path / "out", "--rounds", 1, num_clients=2, listen=address)

    assert serving.wait() == 0
    assert counts(round_records(tmp_path / "out")[0])["replied"] == 2
    assert waiting.wait() == 0


def test_a_killed_server_is_waited_for_and_its_run_resumed(start, tmp_path):
    """Clients stay; the same folder goes on at the round that was cut."""
    address = free_address()

    first = server(start, tmp_path / "out", "--rounds", 400, num_clients=2, listen=address)
    working = start("clients", *faulty_clients(address, "0", "1"))
    _until_round(tmp_path / "out", 3)
    first.kill()
    working.wait_for("no server at")
    done = len(round_records(tmp_path / "out"))
    folder = run_folder(tmp_path / "out")
    more = ["--resume", folder, "--rounds", done + 5]
    second = start("again", *nufed("server", "--listen", address, "--insecure", *more))

    assert second.wait() == 0
    rounds = [record["round"] for record in round_records(tmp_path / "out")]
    assert rounds == list(range(1, done + 6))


def test_a_server_that_is_told_to_stop_leaves_a_whole_folder_and_tells_its_clients(start, tmp_path):
    serving, personal = server(start, tmp_path / "out", "--rounds", 4000, num_clients=2), tmp_path / "personal"
    address = address_of(serving)
    who = ["--server", address, "--insecure", "--once", "--name", "site", "--data", "digits#0/2"]
    site = start("site", *nufed("client", *who, "--personal-model", personal))
    start("clients", *faulty_clients(address, "1"))
    _until_round(tmp_path / "out", 3)

    serving.popen.terminate()

    assert serving.wait(60) == 130
    summary = (run_folder(tmp_path / "out") / "summary.json").read_text()
    assert '"interrupted"' in summary
    assert site.wait(60) == RunError.exit_code
    assert f"was interrupted before its end; the personal model {personal} was not written" in site.output


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["fl.example.org"], [], "is not for the name '127.0.0.1'"),
        (["127.0.0.1"], ["--insecure"], "speaks TLS, but --insecure was typed here"),
    ],
)
def test_a_client_that_cannot_trust_the_server_ends_with_one_sentence(start, tmp_path, names, options, said):
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, names)
    key = add_client(folder, "a")
    trust = options or ["--root-certificates", folder.authority_certificate, "--key", key]

    security = ("--certificates", folder.root)
    serving = server(start, tmp_path / "out", "--rounds", 1, num_clients=1, security=security)
    arguments = ["--server", address_of(serving), "--data", "digits#0/1", "--name", "a", *trust]
    client = start("client", *nufed("client", *arguments))

    assert client.wait() == 7
    (line,) = client.output.splitlines()
    assert said in line


def _until_round(out, number, seconds=90.0):
    import time

    deadline = time.monotonic() + seconds
    while not list(out.glob("*/metrics.jsonl")) or len(round_records(out)) < number:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.05)
