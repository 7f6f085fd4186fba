"""Certificates and node keys are what Flower and OpenSSL accept, and private ones stay private."""

import ssl
import stat

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser

from nufed.common.errors import ConfigError, PeerError, RunError
from nufed.deploy.network.certificates import (
    CertificateFolder,
    add_client,
    create_authority,
    read_certificate,
    read_private_key,
    read_public_key,
    revoke_client,
)


@pytest.fixture
def folder(tmp_path):
    folder = CertificateFolder(tmp_path / "certs")
    create_authority(folder, ["fl.example.org", "10.0.0.7"])
    return folder


def test_the_server_certificate_names_what_clients_dial(folder):
    certificate = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]


def test_the_server_certificate_verifies_against_the_authority(folder):
    authority = x509.load_pem_x509_certificate(folder.authority_certificate.read_bytes())
    certificate = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())

    certificate.verify_directly_issued_by(authority)

    ssl.create_default_context(cadata=folder.authority_certificate.read_text())


def test_a_second_server_certificate_comes_from_the_same_authority(folder):
    before = folder.authority_certificate.read_bytes()
    old_server = folder.server_certificate.read_bytes()

    create_authority(folder, ["other.example.org"])

    assert folder.authority_certificate.read_bytes() == before
    assert folder.server_certificate.read_bytes() != old_server


def test_private_keys_are_readable_by_their_owner_alone(folder):
    add_client(folder, "hospital-a")

    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (folder.authority_key, folder.server_key, folder.client_key("hospital-a"))
    ]

    assert modes == [0o600, 0o600, 0o600]


def test_a_clients_two_key_files_belong_together(folder):
    private = read_private_key(add_client(folder, "hospital-a"))

    public = read_public_key(folder.client_public_key("hospital-a"))

    pem = private.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    assert public == pem
    assert private.curve.name == "secp384r1"


def test_a_name_is_given_once(folder):
    add_client(folder, "hospital-a")

    with pytest.raises(ConfigError, match="'hospital-a' has a key already"):
        add_client(folder, "hospital-a")


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "x" * 65, "white space"])
def test_a_client_name_that_is_no_safe_file_name_is_refused(folder, name):
    with pytest.raises(ConfigError, match="is refused"):
        add_client(folder, name)


def test_revoking_takes_the_public_key_away(folder):
    add_client(folder, "hospital-a")
    add_client(folder, "hospital-b")

    revoke_client(folder, "hospital-a")

    assert [path.stem for path in folder.admitted_clients.iterdir()] == ["hospital-b"]


def test_revoking_an_unknown_client_lists_the_known(folder):
    add_client(folder, "hospital-a")

    with pytest.raises(ConfigError, match="Admitted: hospital-a"):
        revoke_client(folder, "hospital-x")


@pytest.mark.parametrize("names", [[], ["host:9092"], ["-bad-"], ["two words"]])
def test_names_that_cannot_be_dialled_are_refused(tmp_path, names):
    with pytest.raises(ConfigError):
        create_authority(CertificateFolder(tmp_path), names)


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RunError, match="Choose another --out"):
        create_authority(CertificateFolder(tmp_path / "file" / "certs"), ["localhost"])


def test_what_is_no_private_key_is_refused_with_advice(tmp_path, folder):
    (tmp_path / "junk").write_text("junk")

    for path in (tmp_path / "junk", tmp_path / "missing", folder.authority_key):
        with pytest.raises(PeerError, match="nufed certs request"):
            read_private_key(path)


def test_what_is_no_public_key_is_refused_with_advice(tmp_path):
    (tmp_path / "junk.pub").write_text("junk")
    (tmp_path / "other.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2wBrhJtqb6Nw8jyf6hLnYQjUKKr0PRsl8Nkx3qBWT0 someone\n"
    )

    for name in ("junk.pub", "other.pub"):
        with pytest.raises(PeerError, match="nufed certs"):
            read_public_key(tmp_path / name)


def test_what_is_no_certificate_is_refused_with_its_path(tmp_path):
    (tmp_path / "junk.crt").write_text("junk")

    with pytest.raises(PeerError, match=r"junk\.crt"):
        read_certificate(tmp_path / "junk.crt", "the authority's certificate")
    with pytest.raises(PeerError, match="nufed certs init"):
        read_certificate(tmp_path / "missing.crt", "the authority's certificate")
