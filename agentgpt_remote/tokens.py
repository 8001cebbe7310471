"""Tokens of a relay: each is for one role in one room, and the relay stores none of them.

A token is ``ROLE.ROOM.EXPIRY.MAC``, where the MAC is an HMAC-SHA256 (RFC 2104) of the rest under the relay's secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from enum import Enum
from pathlib import Path
from typing import Final

from agentgpt_remote.errors import AuthError, ConfigError

ROOM_PATTERN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
ANY_ROOM: Final = "-"
SECRET_VARIABLE: Final = "AGENTGPT_RELAY_SECRET"
_MIN_SECRET_CHARACTERS = 16
_NEVER = 0
_DAY_S = 86_400.0


class WrongToken(AuthError):
    """A token that this relay's secret did not make, which may be a guess."""


class Role(Enum):
    """What a token lets its holder do."""

    HOST = "agpt-host"
    TRAINER = "agpt-trainer"
    ADMIN = "agpt-admin"

    @property
    def word(self) -> str:
        """The role in a word, as the command line takes it."""
        return self.value.removeprefix("agpt-")


def new_secret() -> str:
    """Return a secret that can't be guessed: 256 random bits as text."""
    return secrets.token_urlsafe(32)


def read_secret(path: str | Path) -> str:
    """Return the secret, or the token, that a file holds in its first line.

    Raises:
        ConfigError: the file can't be read, or is empty.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = "it holds more than ASCII text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(
            f"can't read the secret in {str(path)!r} ({reason}): make one with `agentgpt token > {path}`"
        ) from error
    if len(lines) != 1:
        raise ConfigError(f"{str(path)!r} holds {len(lines)} words: expected one secret; `agentgpt token` makes one")
    return lines[0]


def expiry_in(days: float | None) -> float | None:
    """Return when a token ends that is good for so many days; ``None`` for never."""
    return None if days is None else time.time() + days * _DAY_S


def check_room(room: str) -> str:
    """Return the name of a room.

    Raises:
        ConfigError: it has characters that a name can't have.
    """
    if not isinstance(room, str) or not ROOM_PATTERN.fullmatch(room) or room == ANY_ROOM:
        raise ConfigError(f"room={room!r}: expected 1 to 64 letters, digits, '_' or '-'")
    return room


class Keyring:
    """Makes and checks tokens.

    Args:
        secret: of the relay; kept here only, never shown.

    Raises:
        ConfigError: the secret is so short that it could be guessed.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < _MIN_SECRET_CHARACTERS:
            raise ConfigError(
                f"the relay's secret has {len(secret)} characters, expected at least {_MIN_SECRET_CHARACTERS}: "
                "make one with `agentgpt token`"
            )
        self._key = secret.encode()

    def __repr__(self) -> str:
        return "Keyring(***)"

    def make(self, role: Role, room: str = ANY_ROOM, expires_at: float | None = None) -> str:
        """Return a token.

        Args:
            role: what it is for.
            room: where it is good; an admin's is good for the whole relay.
            expires_at: when it ends, in seconds since 1970; ``None`` for never.
        """
        if role is not Role.ADMIN:
            check_room(room)
        claims = f"{role.value}.{room}.{_NEVER if expires_at is None else int(expires_at)}"
        return f"{claims}.{self._mac(claims)}"

    def _mac(self, claims: str) -> str:
        digest = hmac.digest(self._key, claims.encode("utf-8", "replace"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def check(self, token: str, role: Role, room: str) -> None:
        """Check that a token is good for a role in a room.

        Raises:
            WrongToken: it was not made with the secret.
            AuthError: it is good for something else, or was.
        """
        claims, _, mac = token.rpartition(".")
        if not hmac.compare_digest(self._mac(claims).encode(), mac.encode("utf-8", "replace")):
            raise WrongToken("the token is wrong: it was not made with this relay's secret")
        found, its_room, expiry = claims.split(".")
        if found != role.value:
            raise AuthError(
                f"this is {_article(Role(found).word)} token, and {_article(role.word)} is needed here: "
                f"`agentgpt token --role {role.word}{'' if role is Role.ADMIN else f' --room {room}'}` makes one"
            )
        if role is not Role.ADMIN and its_room != room:
            raise AuthError(f"the token is for room {its_room!r}, not for {room!r}: use that room's URL or token")
        now = time.time()
        if int(expiry) != _NEVER and now >= int(expiry):
            raise AuthError(
                f"the token expired at {_utc(int(expiry))} (the relay's clock says {_utc(now)}): make another with "
                "`agentgpt token`, or set the clock"
            )


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}'s"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
