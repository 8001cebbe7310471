"""A certificate that signs itself, for a server whose other side pins it."""

from __future__ import annotations

import atexit
import datetime
import ipaddress
import os
import socket
import tempfile
from pathlib import Path
from typing import Final

from agentgpt_remote.errors import ConfigError

HOME_VARIABLE: Final = "AGENTGPT_HOME"
PEM_VARIABLE: Final = "AGENTGPT_TLS_PEM"
_VALID_DAYS: Final = 3650  # whoever pins it trusts this very certificate, so its end would only surprise
_BACKDATED: Final = datetime.timedelta(days=1)  # for clocks that are behind


def self_signed_certificate(host: str) -> Path:
    """Return the file of this user's certificate and key (PEM), made where there is none yet.

    It is kept, so that what others have pinned stays right when a server is started again.

    Args:
        host: address that the server listens on, which the certificate names beside this machine's own names.

    Raises:
        ConfigError: the file can't be written.
        ModuleNotFoundError: the library that makes certificates is not installed.
    """
    folder = Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".agentgpt") / "tls"
    path = folder / "self-signed.pem"
    if path.exists():
        return path
    content = make_certificate(host)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process was faster
        return path
    except OSError as error:
        raise ConfigError(
            f"can't write {path}: {error.strerror}; set {HOME_VARIABLE} to a folder that can be"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return path


def certificate_of_environment() -> Path | None:
    """Return a file with the key and certificate (PEM) that ``AGENTGPT_TLS_PEM`` holds, or ``None`` where it is unset.

    A container is given secrets as variables. The file is this user's only, and goes when the process ends.
    """
    content = os.environ.pop(PEM_VARIABLE, None)  # what is started from here needs no key
    if not content:
        return None
    descriptor, name = tempfile.mkstemp(prefix="agentgpt-tls-", suffix=".pem")
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(content)
    atexit.register(Path(name).unlink, missing_ok=True)
    return Path(name)


def make_certificate(host: str) -> bytes:
    """Return the key and certificate (PEM) of a new certificate that signs itself.

    Args:
        host: name or address that it is for, beside this machine's own.

    Raises:
        ModuleNotFoundError: the library that makes certificates is not installed.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "agentgpt-remote")])
    names: list[x509.GeneralName] = []
    for candidate in dict.fromkeys(("localhost", "127.0.0.1", socket.gethostname(), host)):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(candidate)))
        except ValueError:
            if candidate.isascii():
                names.append(x509.DNSName(candidate))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
