"""What the REST interface takes and answers, as structures that JSON is read into and written from."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

SECRET_HEADER: Final = "X-Session-Secret"
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_ENVS: Final = 1024
_MAX_WHOLE: Final = 2**53 - 1  # every JSON library holds these exactly

# JSON Schema takes 1.0 for an integer, msgspec does not.
Count = Annotated[float, Meta(ge=1, le=MAX_ENVS, multiple_of=1)]
Seed = Annotated[float, Meta(ge=0, le=_MAX_WHOLE, multiple_of=1)]
Sequence = Annotated[
    float,
    Meta(
        ge=1,
        le=_MAX_WHOLE,
        multiple_of=1,
        description="Number of this request; a repeated one is answered once more and not executed.",
    ),
]
Number = int | float | Literal["NaN", "Infinity", "-Infinity"]


class MakeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to make: one environment, or a vector of them where ``num_envs`` is given."""

    source: Annotated[str, Meta(description="Environment that the host is expected to serve.")] | None = None
    num_envs: Count | None = None
    autoreset_mode: Literal["NextStep", "SameStep", "Disabled"] = "NextStep"
    render_mode: str | None = None
    kwargs: Annotated[dict[str, Any], Meta(description="Arguments of the environment's constructor.")] = {}


class ResetRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Begin new episodes."""

    seed: Seed | list[Seed | None] | None = None
    options: dict[str, Any] | None = None
    sequence: Sequence | None = None


class StepRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Take one step; of a vector environment, one with each of its environments."""

    action: Annotated[Any, Meta(description="Value of the action space; of a vector, of its batched action space.")]
    sequence: Sequence | None = None


class Spaces(msgspec.Struct, kw_only=True):
    """Descriptions of the spaces; the batched ones are those of a vector environment."""

    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    batched_observation_space: dict[str, Any] | None = None
    batched_action_space: dict[str, Any] | None = None


class SessionInfo(msgspec.Struct, kw_only=True):
    """A session and its environments; it ends when it is idle for ``idle_timeout_s`` seconds."""

    session_id: str
    source: str
    num_envs: int | None
    render_mode: str | None
    metadata: dict[str, Any]
    spec: dict[str, Any] | None
    spaces: Spaces
    next_sequence: int
    idle_timeout_s: float


class MadeSession(SessionInfo, kw_only=True):
    """A new session, with the secret that every request about it must carry."""

    secret: str


class ResetReply(msgspec.Struct, kw_only=True):
    """First observations; ``dropped_info`` names the infos that JSON can't hold."""

    observation: Any
    info: dict[str, Any]
    dropped_info: list[str]
    next_sequence: int


class StepReply(msgspec.Struct, kw_only=True):
    """Outcome of a step; of a vector environment with a list of rewards, and two of flags."""

    observation: Any
    reward: Number | list[Number]
    terminated: bool | list[bool]
    truncated: bool | list[bool]
    info: dict[str, Any]
    dropped_info: list[str]
    next_sequence: int


class Frame(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One of: text, a PNG image in base64, or an array that is no image as nested lists."""

    text: str | None = None
    png: str | None = None
    array: list[Any] | None = None


class RenderReply(msgspec.Struct, kw_only=True):
    """Frames: one of a single environment, one for each of a vector, none where nothing was rendered."""

    frames: list[Frame]


class Health(msgspec.Struct, kw_only=True):
    """State of the host."""

    status: Literal["ok"]
    version: str
    protocol: int
    instance: str
    source: str
    sessions: int
    envs: int
    num_envs: int | None


class ErrorDetail(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Class and text of an error; the host's traceback where the environment raised it.

    ``next_sequence`` is there where the request was executed.
    """

    type: str
    message: str
    traceback: str | None = None
    next_sequence: int | None = None


class Problem(msgspec.Struct, kw_only=True):
    """Why a request failed."""

    error: ErrorDetail


class Refused(msgspec.Struct, kw_only=True):
    """Why a client is not let in: by the host's token (a text), or by the session's secret."""

    error: str | ErrorDetail
