"""A key is made where it is used: a request admits it by its fingerprint, and nothing else does."""

import stat
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from nufed.common.errors import ConfigError, NufedError, PeerError
from nufed.deploy.commands.cli import main
from nufed.deploy.network.certificates import (
    CertificateFolder,
    add_client,
    create_authority,
    read_private_key,
    read_public_key,
    revoke_client,
)
from nufed.deploy.network.key_requests import admit, make_request
from nufed.deploy.network.node_keys import AdmittedKeys


@pytest.fixture
def server(tmp_path):
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, ["fl.example.org"])
    return folder


@pytest.fixture
def site(tmp_path):
    return tmp_path / "site"


def csr(key, *names, digest=None):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest)
    return request.public_bytes(ser.Encoding.PEM)


def test_both_ends_by_the_command_line(server, site, capsys):
    assert main(["certs", "request", "--name", "hospital-a", "--out", str(site)]) == 0
    shown = capsys.readouterr().out
    fingerprint = shown.split("fingerprint: ")[1].splitlines()[0]
    assert main(["certs", "admit", str(site / "hospital-a.csr"), "--out", str(server.root)]) != 0
    assert fingerprint in capsys.readouterr().err
    command = ["certs", "admit", str(site / "hospital-a.csr"), "--out", str(server.root), "--fingerprint"]
    assert main([*command, fingerprint[:-1] + ("A" if fingerprint[-1] != "A" else "B")]) != 0
    assert not server.client_public_key("hospital-a").exists()
    assert "is not admitted" in capsys.readouterr().err

    assert main([*command, fingerprint]) == 0

    private = read_private_key(site / "hospital-a.key").public_key()
    pem = private.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    assert AdmittedKeys(server.admitted_clients).name_of(pem) == "hospital-a"
    assert stat.S_IMODE((site / "hospital-a.key").stat().st_mode) == 0o600
    assert "PRIVATE KEY" not in shown + capsys.readouterr().out
    assert not any(b"OPENSSH PRIVATE" in path.read_bytes() for path in server.root.rglob("*") if path.is_file())


def test_the_fingerprint_is_what_openssh_shows(server, site):
    _, request, fingerprint = make_request(site, "a")
    admit(server, request, fingerprint)

    try:
        done = subprocess.run(
            ["ssh-keygen", "-l", "-f", server.client_public_key("a")], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("ssh-keygen is not installed")

    assert done.stdout.split()[1] == fingerprint


def test_a_key_is_never_replaced_and_a_revoked_client_makes_another(server, site, tmp_path):
    key, request, fingerprint = make_request(site, "a")
    admit(server, request, fingerprint)
    before = key.read_bytes()

    with pytest.raises(ConfigError, match="exists already"):
        make_request(site, "a")
    with pytest.raises(ConfigError, match="is admitted already"):
        admit(server, request, fingerprint)
    assert key.read_bytes() == before

    revoke_client(server, "a")
    _, another, told = make_request(tmp_path / "again", "a")
    admit(server, another, told)

    assert read_public_key(server.client_public_key("a")) != before


def test_one_key_is_one_clients(server, site):
    key, request, fingerprint = make_request(site, "a")
    admit(server, request, fingerprint)
    renamed = site / "b.csr"
    renamed.write_bytes(csr(read_private_key(key), "b", digest=hashes.SHA384()))

    with pytest.raises(ConfigError, match="admitted already, as 'a'"):
        admit(server, renamed, fingerprint)


def _changed(content):
    middle = len(content) // 2
    return content[:middle] + (b"A" if content[middle : middle + 1] != b"A" else b"B") + content[middle + 1 :]


_P384 = ec.generate_private_key(ec.SECP384R1())
WRONG = {
    "nothing": b"",
    "text": b"hello",
    "too large": b"-----BEGIN CERTIFICATE REQUEST-----\n" + b"A" * 2**20,
    "changed on the way": _changed(csr(_P384, "a", digest=hashes.SHA384())),
    "another curve": csr(ec.generate_private_key(ec.SECP256R1()), "a", digest=hashes.SHA256()),
    "another kind of key": csr(ed25519.Ed25519PrivateKey.generate(), "a"),
    "no name": csr(_P384, digest=hashes.SHA384()),
    "two names": csr(_P384, "a", "b", digest=hashes.SHA384()),
    "a path as name": csr(_P384, "../../etc/cron", digest=hashes.SHA384()),
    "control characters": csr(_P384, "a\x1b[2J", digest=hashes.SHA384()),
    "a private key": _P384.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.OpenSSH, ser.NoEncryption()),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_request_is_refused_by_a_sentence(server, tmp_path, what):
    path = tmp_path / "sent.csr"
    path.write_bytes(WRONG[what])

    with pytest.raises(PeerError) as refusal:
        admit(server, path, "SHA256:x")

    assert "nufed certs request" in str(refusal.value) or "is refused: expected" in str(refusal.value)
    assert "\x1b" not in str(refusal.value)
    assert not list(server.admitted_clients.iterdir())


def test_a_missing_request_and_a_missing_folder_are_said(server, site, tmp_path):
    _, request, fingerprint = make_request(site, "a")

    with pytest.raises(PeerError, match="No such file"):
        admit(server, site / "b.csr", fingerprint)
    with pytest.raises(ConfigError, match="nufed certs init"):
        admit(CertificateFolder(tmp_path / "elsewhere"), request, fingerprint)
    for name in ("", "../a", "-a", "a b", "a" * 65):
        with pytest.raises(NufedError, match="is refused"):
            make_request(site, name)


def test_keys_that_were_made_for_trials_stay_valid(server):
    read_private_key(add_client(server, "a"))

    assert len(list(AdmittedKeys(server.admitted_clients))) == 1
