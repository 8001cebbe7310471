"""The client's side of TLS: a socket that the WebSocket client reads like any other."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from typing import Any

from agentgpt_remote.errors import AuthError, ProtocolMismatch


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


def encrypt(sock: socket.socket, host: str, url: str) -> TlsSocket:
    """Return an encrypted socket over a connected one, with the server's certificate verified.

    Certificates of the system are trusted, or those in the file that ``SSL_CERT_FILE`` names.

    Args:
        sock: the connection; it belongs to the result.
        host: name that the certificate must be for.
        url: how the server is called in errors.

    Raises:
        AuthError: the certificate is not trusted, or is for another name.
        ProtocolMismatch: the server does not speak TLS.
        OSError: the connection ended.
    """
    context = ssl.create_default_context()
    context.sslsocket_class = TlsSocket
    try:
        encrypted = context.wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        raise AuthError(
            f"the certificate of {url} is not trusted: {error.verify_message}; set SSL_CERT_FILE to a file with the "
            "certificate that signed it"
        ) from error
    except ssl.SSLError as error:
        raise ProtocolMismatch(f"{url} does not speak TLS ({error.reason}): try ws:// or http://") from error
    if not isinstance(encrypted, TlsSocket):
        raise TypeError(f"got a {type(encrypted).__name__}: expected a TlsSocket")
    return encrypted
