"""The commands of a real federation check what was typed before anything starts, and say what to do."""

import pytest

from nufed.common.errors import ConfigError, PeerError
from nufed.deploy.commands.cli import main
from nufed.deploy.network.certificates import CertificateFolder


@pytest.fixture
def certs(tmp_path, capsys):
    assert main(["certs", "init", "--san", "127.0.0.1", "--out", str(tmp_path / "certs")]) == 0
    capsys.readouterr()
    return CertificateFolder(tmp_path / "certs")


def test_certificates_and_keys_are_made_and_revoked(certs, capsys):
    out = ["--out", str(certs.root)]

    assert main(["certs", "add-client", "hospital-a", *out]) == 0
    assert certs.client_key("hospital-a").exists()
    assert main(["certs", "revoke", "hospital-a", *out]) == 0

    assert not certs.client_public_key("hospital-a").exists()
    said = capsys.readouterr().out
    assert "so whoever reads this machine can pass for hospital-a" in said
    assert "hospital-a is not admitted any more" in said
    assert "PRIVATE KEY" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--root-certificates", "ca.crt"], "Expected --key"),
        (["--key", "key"], "Expected --root-certificates"),
        ([], "Expected --root-certificates and --key"),
        (["--insecure", "--key", "key"], "--insecure contradicts"),
        (["--insecure", "--server", "nowhere"], "Expected --server HOST:PORT"),
    ],
)
def test_a_client_says_what_it_lacks(arguments, said, capsys):
    code = main(["client", "--server", "localhost:9092", "--data", "digits#0/2", "--name", "a", *arguments])

    assert code == ConfigError.exit_code
    assert said in capsys.readouterr().err


def test_a_client_whose_key_file_is_missing_names_it(certs, capsys):
    trust = ["--root-certificates", str(certs.authority_certificate), "--key", "missing-key"]

    code = main(["client", "--server", "localhost:9092", "--data", "digits#0/2", "--name", "a", *trust])

    assert code == PeerError.exit_code
    assert "missing-key" in capsys.readouterr().err


def test_a_client_gives_up_after_the_time_it_may_wait(capsys):
    arguments = ["--server", "127.0.0.1:9", "--data", "digits#0/2", "--name", "a", "--insecure", "--wait", "0.1"]

    code = main(["client", *arguments])

    assert code == PeerError.exit_code
    assert "within 0.1 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--certificates", "nowhere"], "nowhere/server.crt"),
        (["--insecure", "--certificates", "certs"], "--insecure contradicts --certificates"),
        (["--insecure", "--round-timeout", "-1"], "federation.round-timeout"),
        (["--insecure", "--rounds", "many"], "--rounds"),
        (["--insecure", "--resume", "nowhere"], "nowhere"),
    ],
)
def test_a_server_says_what_is_wrong_with_its_options(arguments, said, capsys):
    assert main(["server", *arguments]) != 0

    assert said in capsys.readouterr().err


@pytest.mark.parametrize("listen", ["9092", "localhost:port", "192.0.2.1:9092"])
def test_a_server_that_cannot_listen_names_the_address(listen, capsys):
    assert main(["server", "--insecure", "--listen", listen]) == 6

    assert listen in capsys.readouterr().err


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "a\nb", "\x1b[2J", ""])
def test_a_client_whose_name_no_server_would_take_does_not_start(name, capsys):
    code = main(["client", "--server", "127.0.0.1:9", "--data", "digits#0/2", "--name", name, "--insecure"])

    assert code == ConfigError.exit_code
    assert "--name is refused" in (told := " ".join(capsys.readouterr().err.split()))
    assert told.isprintable()


@pytest.mark.parametrize(
    "typed",
    [
        ["server", "--insecure", "--wait", "nan"],
        ["client", "--insecure", "--server", "h:1", "--name", "a", "--data", "digits#0/3", "--wait", "inf"],
        ["personalize", "--model", "m", "--data", "digits#0/3", "--lr", "nan"],
        ["theory", "--L", "nan"],
    ],
)
def test_numbers_that_are_none_are_refused(typed, capsys):
    """NaN is in every range that it is compared with, and nobody waits for NaN seconds."""
    code = main(typed)

    assert code == 2
    assert f"{typed[-2]}={typed[-1]}" in capsys.readouterr().err
