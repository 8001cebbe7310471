"""Who may do what at a relay: the role and the room that a path asks for."""

from __future__ import annotations

from agentgpt_remote.admission import TOKEN_VARIABLE, Admission, ASGIApp, Refusal
from agentgpt_remote.errors import AuthError
from agentgpt_remote.meeting import CONTROL_PATH, DATA_PATH
from agentgpt_remote.tokens import ANY_ROOM, Keyring, Role, WrongToken

_BEARER = b"Bearer "
OPEN_PATHS = ("/health", "/metrics", "/ping")
STATUS_PATH = "/status"
NO_ROOM = "this is a relay: name a room, as in wss://RELAY/ROOM"


class RelayAuth(Admission):
    """Lets hosts and trainers into their rooms only.

    Args:
        app: the relay.
        keyring: checks tokens; ``None`` lets in local programs only.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring | None) -> None:
        super().__init__(app, OPEN_PATHS)
        self._keyring = keyring

    @property
    def has_tokens(self) -> bool:
        """Whether a token is asked for."""
        return self._keyring is not None

    def judge(self, path: str, given: bytes) -> Refusal | None:
        """Return why a token is not good for a path, or ``None`` where it is."""
        if path != STATUS_PATH and path.count("/") < 2:
            return Refusal(404, NO_ROOM)
        role, room = needed_for(path)
        if not given.startswith(_BEARER):
            reason = f"a {role.word}'s token is required: pass token=, --token or {TOKEN_VARIABLE}; the relay's owner "
            return Refusal(401, f"{reason}makes one with `agentgpt token --role {role.word}`", is_guess=bool(given))
        if self._keyring is None:
            return None
        try:
            self._keyring.check(given.removeprefix(_BEARER).decode("latin-1"), role, room)
        except WrongToken as error:
            return Refusal(401, str(error), is_guess=True)
        except AuthError as error:
            return Refusal(403, str(error))
        return None


def needed_for(path: str) -> tuple[Role, str]:
    """Return the role and the room that a path is for."""
    _, room, *rest = [*path.split("/"), ""]
    if path == STATUS_PATH:
        return Role.ADMIN, ANY_ROOM
    if len(rest) == 2 and f"/{rest[0]}" in (CONTROL_PATH, DATA_PATH):
        return Role.HOST, room
    return Role.TRAINER, room
