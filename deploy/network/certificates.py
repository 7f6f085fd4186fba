"""Certificates and node keys: a certificate authority, a server certificate with its names, a key per client.

    FOLDER/
    ├── ca.crt            given to every client (--root-certificates)
    ├── ca.key            signs server certificates; the server does not need it
    ├── server.crt        names in it are the ones clients may dial
    ├── server.key
    ├── roster.json       the clients' keys, signed by ca.key, which clients check one another by (rosters.py)
    ├── clients/NAME.pub  the keys a server admits; it re-reads this folder while it runs
    └── keys/NAME         for trials: the private key of client NAME, where it was made here and not on its own machine
                          (key_requests.py)

Node keys are OpenSSH files on NIST P-384, because Flower reads no others. Private keys are written with mode 0600.
"""

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nufed.common.errors import ConfigError, PeerError, RunError
from nufed.common.untrusted import shown

_AUTHORITY_NAME = "NuFed certificate authority"
_CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ROSTER_DAYS = 90
"""For how long a roster of clients' keys is believed that is signed now."""

_SHORT_OF_DAYS = 30
_TIME = "%Y-%m-%d %H:%M UTC"
_BACKDATING = dt.timedelta(minutes=10)
_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


@dataclass(frozen=True)
class CertificateFolder:
    """The paths inside a folder of certificates."""

    root: Path

    @property
    def authority_certificate(self) -> Path:
        """Return the path of the authority's certificate."""
        return self.root / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Return the path of the authority's private key."""
        return self.root / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """Return the path of the server's certificate."""
        return self.root / "server.crt"

    @property
    def server_key(self) -> Path:
        """Return the path of the server's private key."""
        return self.root / "server.key"

    @property
    def admitted_clients(self) -> Path:
        """Return the folder of public keys that a server admits."""
        return self.root / "clients"

    @property
    def roster(self) -> Path:
        """Return the path of the roster of clients' keys that the authority signed."""
        return self.root / "roster.json"

    def client_key(self, name: str) -> Path:
        """Return the path of a client's private key."""
        return self.root / "keys" / name

    def client_public_key(self, name: str) -> Path:
        """Return the path of a client's public key."""
        return self.admitted_clients / f"{name}.pub"


def create_authority(folder: CertificateFolder, names: Sequence[str], *, days: int = 365, force: bool = False) -> None:
    """Write an authority and a server certificate that is valid for `names` (host names and IP addresses).

    An existing authority is kept and signs a new server certificate, so that clients need not be given another one.

    Args:
        folder: where to.
        names: what clients dial, e.g. `fl.example.org` or `10.0.0.7`.
        days: validity of the certificates; negative makes expired ones.
        force: replace what this authority did not make: half an authority, or a server certificate of another one.

    Raises:
        ConfigError: no name was given, one is neither a host name nor an address, or something would be lost.
        RunError: the folder cannot be written.
    """
    alternatives = [_alternative_name(name) for name in names]
    if not alternatives:
        raise ConfigError("Expected at least one host name or IP address that clients dial; add --san NAME.")
    if not force:
        _refuse_loss(folder)
    if folder.authority_key.exists() and folder.authority_certificate.exists():
        authority_key = load_authority_key(folder.authority_key)
        authority = x509.load_pem_x509_certificate(folder.authority_certificate.read_bytes())
    else:
        authority_key = ec.generate_private_key(ec.SECP384R1())
        authority = _authority_certificate(authority_key, days)
        write_key_file(folder.authority_key, _pem(authority_key), private=True)
        write_key_file(folder.authority_certificate, authority.public_bytes(ser.Encoding.PEM))
    server_key = ec.generate_private_key(ec.SECP384R1())
    certificate = _server_certificate((authority, authority_key), server_key.public_key(), alternatives, days)
    write_key_file(folder.server_key, _pem(server_key), private=True)
    write_key_file(folder.server_certificate, certificate.public_bytes(ser.Encoding.PEM))
    _make_folder(folder.admitted_clients)


def _refuse_loss(folder: CertificateFolder) -> None:
    """Refuse to replace an authority of which a half is elsewhere, or a server certificate that it did not sign."""
    halves = [folder.authority_certificate, folder.authority_key]
    there = [path for path in halves if path.exists()]
    if len(there) == 1:
        missing = next(path for path in halves if path not in there)
        raise ConfigError(
            f"{there[0]} exists, but not {missing}. Bring it back to make another server certificate that clients "
            "trust, or type --force for a new authority, whose ca.crt every client has to be given."
        )
    server = [path for path in (folder.server_certificate, folder.server_key) if path.exists()]
    if server and not (there and _signed_here(folder)):
        raise ConfigError(
            f"{server[0]} exists and was not made by `nufed certs init` in {folder.root}. Choose another --out, or "
            "type --force to replace it."
        )


def _signed_here(folder: CertificateFolder) -> bool:
    try:
        authority = x509.load_pem_x509_certificate(folder.authority_certificate.read_bytes())
        x509.load_pem_x509_certificate(folder.server_certificate.read_bytes()).verify_directly_issued_by(authority)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    return True


def check_client_name(name: str) -> None:
    """Refuse a client's name that cannot be a file name.

    Raises:
        ConfigError: with what is expected.
    """
    if not _CLIENT_NAME.fullmatch(name):
        raise ConfigError(
            f"Client name {shown(name)} is refused: expected 1 to 64 letters, digits, dots, hyphens or underscores, "
            "beginning with a letter or digit."
        )


def add_client(folder: CertificateFolder, name: str) -> Path:
    """Make a node key for a client on this machine, admit it, and return the path of the private key.

    For trials: where sites do not share a machine, keys are made where they are used (`key_requests`).

    Raises:
        ConfigError: the name cannot be a file name, or is taken.
        RunError: the folder cannot be written.
    """
    check_client_name(name)
    if folder.client_public_key(name).exists() or folder.client_key(name).exists():
        raise ConfigError(f"Client {name!r} has a key already; choose another name, or revoke it first.")
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.OpenSSH, ser.NoEncryption())
    public = key.public_key().public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH)
    write_key_file(folder.client_key(name), private, private=True)
    write_key_file(folder.client_public_key(name), public + b" " + name.encode() + b"\n")
    return folder.client_key(name)


def revoke_client(folder: CertificateFolder, name: str) -> None:
    """Take a client's key away from the admitted ones; a running server refuses it within seconds.

    Raises:
        ConfigError: no such client is admitted.
    """
    public_key = folder.client_public_key(name)
    if not public_key.exists():
        admitted = sorted(path.stem for path in folder.admitted_clients.glob("*.pub"))
        raise ConfigError(
            f"Client {name!r} is not admitted in {folder.admitted_clients}. Admitted: {', '.join(admitted) or 'none'}."
        )
    public_key.unlink()
    folder.client_key(name).unlink(missing_ok=True)


def read_public_key(path: Path) -> bytes:
    """Return a client's public key as Flower sends it (PEM) from an OpenSSH `.pub` file.

    Raises:
        PeerError: the file holds no key on a NIST curve.
    """
    try:
        key = ser.load_ssh_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm, OSError) as error:
        raise PeerError(
            f"Expected an OpenSSH public key in {path}, but {error}. Make it with `nufed certs`."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise PeerError(f"The key in {path} is not on a NIST curve, which Flower needs. Make it with `nufed certs`.")
    return key.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)


def read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a client's private key from an OpenSSH file.

    Raises:
        PeerError: the file cannot be read, or holds no unencrypted key on a NIST curve.
    """
    advice = "Use the file that `nufed certs request` made."
    try:
        key = ser.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise PeerError(f"Expected this client's private key at {path} ({error.strerror}). {advice}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PeerError(f"Expected an unencrypted OpenSSH private key in {path}, but found none. {advice}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PeerError(f"The key in {path} is not on a NIST curve, which Flower needs. {advice}")
    return key


def read_certificate(path: Path, what: str) -> bytes:
    """Return the content of a PEM file with certificates.

    Raises:
        PeerError: it cannot be read, or holds no certificate.
    """
    try:
        content = path.read_bytes()
        x509.load_pem_x509_certificates(content)
    except OSError as error:
        raise PeerError(f"Expected {what} at {path} ({error.strerror}). Make it with `nufed certs init`.") from error
    except ValueError as error:
        raise PeerError(f"Expected {what} (PEM) in {path}, but it holds no certificate. Check the path.") from error
    return content


def check_validity(content: bytes, path: Path, *, now: dt.datetime | None = None) -> str | None:
    """Return a sentence if a server's certificates end within 30 days, None if there is time.

    Args:
        content: PEM certificates.
        path: where they came from.
        now: the time; None takes this machine's.

    Raises:
        PeerError: one of them has expired, or is not valid yet.
    """
    now = now or dt.datetime.now(dt.UTC)
    chain = x509.load_pem_x509_certificates(content)
    begin = max(certificate.not_valid_before_utc for certificate in chain)
    end = min(certificate.not_valid_after_utc for certificate in chain)
    if now >= end:
        raise PeerError(
            f"The server's certificate {path} expired on {end:{_TIME}}, and no client would trust it: make a new one "
            "with `nufed certs init` and the same authority, or set this machine's clock right."
        )
    if now < begin:
        raise PeerError(
            f"The server's certificate {path} is valid from {begin:{_TIME}} on, and it is {now:{_TIME}} by this "
            "machine's clock: set the clock right, or wait."
        )
    days = (end - now).days
    if days >= _SHORT_OF_DAYS:
        return None
    return f"the server's certificate {path} expires in {days} days ({end:{_TIME}}); renew it with `nufed certs init`"


def _alternative_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name):
            raise ConfigError(
                f"--san {name!r} is refused: expected a host name such as fl.example.org, or an IP address, "
                "without port."
            ) from None
        return x509.DNSName(name)


def _authority_certificate(key: ec.EllipticCurvePrivateKey, days: int) -> x509.Certificate:
    builder = _certificate(_AUTHORITY_NAME, key.public_key(), days)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    public_key: ec.EllipticCurvePublicKey,
    alternatives: Sequence[x509.GeneralName],
    days: int,
) -> x509.Certificate:
    certificate, key = authority
    issuer_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _certificate("NuFed server", public_key, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(_key_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
        .sign(key, hashes.SHA384())
    )


def _certificate(subject: str, public_key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_distinguished(subject))
        .issuer_name(_distinguished(_AUTHORITY_NAME))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        # Clocks differ a little: a certificate made now must be valid on a machine whose clock is behind.
        .not_valid_before(min(now, now + dt.timedelta(days=days)) - _BACKDATING)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _distinguished(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _KEY_USAGES})


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())


def load_authority_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return an authority's private key.

    Raises:
        RunError: the file holds none of `nufed certs init`.
    """
    try:
        key = ser.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, OSError) as error:
        raise RunError(f"Expected the authority's private key in {path}, but {error}. Use another --out.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RunError(f"The authority's key in {path} was not made by `nufed certs init`. Use another --out.")
    return key


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"Folder {path} cannot be made ({error.strerror}). Choose another --out.") from error


def write_key_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file that is never, not even for a moment, readable by others when it is private.

    Raises:
        RunError: it cannot be written.
    """
    _make_folder(path.parent)
    try:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        raise RunError(f"File {path} cannot be written ({error.strerror}). Choose another --out.") from error
