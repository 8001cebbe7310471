"""The client's side of TLS: whom to trust, and a socket that the WebSocket client reads like any other.

Whom to trust is a matter of this machine rather than of one environment, so it is read from variables that child
processes inherit: ``AGENTGPT_PIN``, ``AGENTGPT_CA_FILE`` and ``AGENTGPT_INSECURE``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import ipaddress
import os
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any, Final

from agentgpt_remote.errors import AuthError, ConfigError, ProtocolMismatch

PIN_VARIABLE: Final = "AGENTGPT_PIN"
CA_VARIABLE: Final = "AGENTGPT_CA_FILE"
INSECURE_VARIABLE: Final = "AGENTGPT_INSECURE"
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_* of OpenSSL


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose certificates are trusted, and whether a token may travel unencrypted.

    Attributes:
        pins: fingerprints of certificates; where there are any, no other certificate is trusted.
        ca_file: certificates of authorities to trust instead of the system's, PEM.
        insecure: whether secrets may be sent in plaintext beyond this machine.
    """

    pins: tuple[str, ...] = ()
    ca_file: str | None = None
    insecure: bool = False

    @classmethod
    def of(cls, pin: str | None = None, ca_file: str | None = None, *, insecure: bool = False) -> Trust:
        """Return what the options say.

        Args:
            pin: ``sha256:`` and 64 hexadecimal digits; several with commas between.
            ca_file: file of certificates, PEM.
            insecure: whether plaintext is allowed.

        Raises:
            ConfigError: the pin is no fingerprint.
        """
        pins = tuple(map(_read_pin, pin.split(","))) if pin else ()
        return cls(pins=pins, ca_file=ca_file, insecure=insecure)

    @classmethod
    def of_environment(cls) -> Trust:
        """Return what the variables say; raises as :meth:`of`."""
        return cls.of(os.environ.get(PIN_VARIABLE), os.environ.get(CA_VARIABLE) or None, insecure=is_insecure_allowed())

    def context(self) -> ssl.SSLContext:
        """Return what to connect with; the caller must :meth:`check_pin` after the handshake.

        Raises:
            ConfigError: the file of authorities can't be read.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:  # ssl.SSLError too
            raise ConfigError(f"can't use the CA file {self.ca_file!r}: {error}") from error
        if self.pins:  # the certificate itself is known, whoever signed it and whatever name is in it
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def check_pin(self, certificate: bytes | None, url: str) -> None:
        """Check the server's certificate against the pins, where there are any.

        Args:
            certificate: DER.
            url: how the server is called in errors.

        Raises:
            AuthError: it is another certificate.
        """
        if not self.pins:
            return
        found = "none" if certificate is None else fingerprint(certificate)
        if not any(hmac.compare_digest(found, pin) for pin in self.pins):
            raise AuthError(
                f"the certificate of {url} is {found}, which is not the pinned one: somebody may be in between, or the "
                "server has a new certificate; compare with what it prints when it starts"
            )

    def check_plaintext(self, sock: socket.socket, url: str) -> None:
        """Check that a secret may be sent over a socket without TLS.

        Raises:
            AuthError: it leads to another machine.
        """
        if not self.insecure and not is_local(sock):
            raise AuthError(
                f"refusing to send a token unencrypted to {url}: use wss:// (start the server with --tls-self-signed, "
                f"or --tls-cert and --tls-key), or allow plaintext with --insecure or {INSECURE_VARIABLE}=1"
            )


def _read_pin(text: str) -> str:
    kind, _, digits = text.strip().lower().partition(":")
    pin = f"{kind}:{digits.replace(':', '')}"
    if not _PIN.fullmatch(pin):
        raise ConfigError(f"pin={text!r}: expected sha256: and 64 hexadecimal digits, as the server prints them")
    return pin


def is_insecure_allowed() -> bool:
    """Tell whether ``AGENTGPT_INSECURE`` allows plaintext beyond this machine."""
    return os.environ.get(INSECURE_VARIABLE, "").lower() in ("1", "true", "yes", "insecure")


def is_local(sock: socket.socket) -> bool:
    """Tell whether a connected socket leads to a process of this machine."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a Unix socket
    with contextlib.suppress(OSError, ValueError):
        address = ipaddress.ip_address(str(sock.getpeername()[0]).partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback
    return False


def fingerprint(certificate: bytes) -> str:
    """Return the fingerprint of a certificate (DER), as a pin names it."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def pin_of(pem: bytes) -> str:
    """Return the fingerprint of the first certificate in PEM text, as a pin names it.

    Raises:
        ValueError: there is none.
    """
    text, end = pem.decode("ascii"), "-----END CERTIFICATE-----"
    return fingerprint(ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN CERT") : text.index(end) + len(end)]))


def untrusted(error: ssl.SSLError, url: str) -> AuthError | ProtocolMismatch:
    """Return the error to raise where the TLS handshake failed."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return ProtocolMismatch(
            f"{url} does not speak TLS ({error.reason}): start the server with --tls-self-signed or a certificate; "
            "nothing was sent to it"
        )
    clock = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    if error.verify_code == _EXPIRED:
        remedy = f"renew it, or set this machine's clock, which says {clock}"
    elif error.verify_code == _NOT_YET_VALID:
        remedy = f"set this machine's clock, which says {clock}"
    else:
        remedy = (
            "pass its fingerprint with --pin, or the certificate that signed it with --ca-file "
            f"({PIN_VARIABLE}, {CA_VARIABLE} or SSL_CERT_FILE)"
        )
    return AuthError(f"the certificate of {url} is not trusted: {error.verify_message}; {remedy}")


class TlsSocket(ssl.SSLSocket):
    """An encrypted socket whose reads time out, or do not wait, as those of a plain one do."""

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive some bytes.

        Raises:
            BlockingIOError: none came within the socket's timeout, or with ``MSG_DONTWAIT`` none are there.
            OSError: the connection ended.
        """
        if self.fileno() == -1:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if flags & socket.MSG_DONTWAIT and not self.pending() and not select.select([self], (), (), 0.0)[0]:
            raise BlockingIOError
        try:
            return super().recv_into(buffer, nbytes or len(buffer))
        except (TimeoutError, ssl.SSLWantReadError) as error:
            raise BlockingIOError from error


def encrypt(sock: socket.socket, host: str, url: str, trust: Trust | None = None) -> TlsSocket:
    """Return an encrypted socket over a connected one, with the server's certificate verified.

    Args:
        sock: the connection; it belongs to the result.
        host: name that the certificate must be for, unless it is pinned.
        url: how the server is called in errors.
        trust: whom to trust; what the environment's variables say by default.

    Raises:
        AuthError: the certificate is not trusted, is for another name, or is not the pinned one.
        ProtocolMismatch: the server does not speak TLS.
        OSError: the connection ended.
    """
    trust = Trust.of_environment() if trust is None else trust
    context = trust.context()
    context.sslsocket_class = TlsSocket
    try:
        encrypted = context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLEOFError:
        raise
    except ssl.SSLError as error:
        raise untrusted(error, url) from error
    if not isinstance(encrypted, TlsSocket):
        raise TypeError(f"got a {type(encrypted).__name__}: expected a TlsSocket")
    try:
        trust.check_pin(encrypted.getpeercert(binary_form=True), url)
    except BaseException:
        encrypted.close()
        raise
    return encrypted
