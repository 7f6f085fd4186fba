"""A client's key made where the client is: the private key stays there, and a signed request for admission goes out.

    at the client    NAME.key   private key (0600), never shown and never sent
                     NAME.csr   PKCS #10 request (RFC 2986): name and public key, signed with the private key
    at the server    clients/NAME.pub, written when the request's fingerprint is the one that the client told

The request is public, but whoever carries it could put another in its place. So the client's people tell the server's
the fingerprint of the public key by another way, such as a telephone call. It is OpenSSH's: `ssh-keygen -l -f NAME.pub`
prints the same.
"""

import base64
import hashlib
import hmac
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nufed.common.errors import ConfigError, PeerError
from nufed.common.untrusted import shown
from nufed.deploy.network.certificates import (
    CertificateFolder,
    check_client_name,
    read_public_key,
    write_key_file,
)

_PREFIX = "SHA256:"
_LARGEST = 64 * 1024  # bytes; a request has about 600


@dataclass(frozen=True)
class KeyRequest:
    """A client that asks to be admitted.

    Attributes:
        name: of the client.
        public_key: in OpenSSH's form.
        fingerprint: of the public key, e.g. `SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU`.
    """

    name: str
    public_key: bytes
    fingerprint: str


def make_request(folder: Path, name: str) -> tuple[Path, Path, str]:
    """Make a key pair and a request for admission; return the paths of key and request, and the fingerprint.

    Args:
        folder: of the two files, NAME.key and NAME.csr; made if it is not there.
        name: of the client.

    Raises:
        ConfigError: the name cannot be a file name, or one of the files is there already.
        RunError: the folder cannot be written.
    """
    check_client_name(name)
    key_path, request_path = folder / f"{name}.key", folder / f"{name}.csr"
    for path in (key_path, request_path):
        if path.exists() or path.is_symlink():
            raise ConfigError(
                f"{path} exists already, and a key that is replaced cannot be had back. Send the request that was made "
                "with it, or choose another --out; move both files away if the key was revoked."
            )
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA384())
    private = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.OpenSSH, ser.NoEncryption())
    write_key_file(key_path, private, private=True)
    write_key_file(request_path, request.public_bytes(ser.Encoding.PEM))
    return key_path, request_path, _fingerprint(_openssh(key.public_key()))


def read_request(path: Path) -> KeyRequest:
    """Return the content of a request that somebody sent.

    Raises:
        PeerError: the file cannot be read, is no request, is not signed with its own key, or has no usable key or name.
    """
    advice = "Ask the client for the file that `nufed certs request` made there."
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise PeerError(f"Expected a client's request at {path} ({error.strerror}). {advice}") from error
    if b"PRIVATE KEY" in content:
        raise PeerError(
            f"{path} holds a private key, which should never have left the client's machine. Delete it, let the client "
            f"make a new one with `nufed certs request`, and send the .csr file alone."
        )
    try:
        request = x509.load_pem_x509_csr(content)
        is_signed, key = request.is_signature_valid, request.public_key()
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise PeerError(f"Expected a client's request (PKCS #10, PEM) in {path}, but found none. {advice}") from error
    if not is_signed:
        raise PeerError(f"The request in {path} is not signed with the key that it names: it was changed. {advice}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise PeerError(f"The key in {path} is not on the curve P-384. {advice}")
    if len(names) != 1:
        raise PeerError(f"Expected one name in the request {path}, got {len(names)}. {advice}")
    name = str(names[0].value)
    try:
        check_client_name(name)
    except ConfigError as error:
        raise PeerError(f"The request in {path} is refused: {error}") from error
    public_key = _openssh(key)
    return KeyRequest(name, public_key, _fingerprint(public_key))


def admit(folder: CertificateFolder, path: Path, fingerprint: str) -> KeyRequest:
    """Admit a client whose request has the fingerprint that the client's people told; return its request.

    Args:
        folder: of the server's certificates.
        path: of the request.
        fingerprint: as told, with or without `SHA256:`.

    Raises:
        ConfigError: no or another fingerprint was given, or the name or the key is admitted already.
        PeerError: the file is no request.
        RunError: the folder cannot be written.
    """
    request = read_request(path)
    if not folder.admitted_clients.is_dir():
        raise ConfigError(
            f"Expected a folder of admitted clients at {folder.admitted_clients}. Make it with `nufed certs init`, or "
            "name the folder with --out."
        )
    told = fingerprint.strip().removeprefix(_PREFIX).rstrip("=")
    if not told:
        raise ConfigError(
            f"{path} asks to admit {request.name} with the key {request.fingerprint}. Ask {request.name} by another "
            "way, such as by telephone, which fingerprint it was shown, and type that: --fingerprint SHA256:…"
        )
    if not hmac.compare_digest(told.encode(), request.fingerprint.removeprefix(_PREFIX).encode()):
        raise ConfigError(
            f"{request.name} is not admitted: the key in {path} is {request.fingerprint}, and --fingerprint is "
            f"{shown(fingerprint)}. Either it was mistyped, or this is not the file that {request.name} sent."
        )
    if folder.client_public_key(request.name).exists():
        raise ConfigError(
            f"Client {request.name!r} is admitted already. Revoke its key first, with "
            f"`nufed certs revoke {request.name}`."
        )
    key = ser.load_ssh_public_key(request.public_key)
    pem = key.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    for other in sorted(folder.admitted_clients.glob("*.pub")):
        if read_public_key(other) == pem:
            raise ConfigError(
                f"The key in {path} is admitted already, as {other.stem!r}, and a key is one client's. Let the "
                "client make another with `nufed certs request`."
            )
    write_key_file(folder.client_public_key(request.name), request.public_key + b" " + request.name.encode() + b"\n")
    return request


def _openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(ser.Encoding.OpenSSH, ser.PublicFormat.OpenSSH)


def _fingerprint(public_key: bytes) -> str:
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return _PREFIX + base64.b64encode(digest).decode().rstrip("=")
