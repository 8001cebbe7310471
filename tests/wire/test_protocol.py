"""The sans-I/O session protocol: numbering, repetition, malformed messages, errors across the wire."""

from __future__ import annotations

import gymnasium.error
import pytest

from agentgpt_remote import errors
from agentgpt_remote.errors import CapacityReached, ProtocolError, RemoteEnvError
from agentgpt_remote.handshake import (
    Limits,
    Open,
    Opened,
    Resume,
    decode_from_client,
    decode_from_host,
    encode_handshake,
    versions,
)
from agentgpt_remote.protocol import (
    HEADER_BYTES,
    Arrival,
    ClientSession,
    HostSession,
    Kind,
    join_message,
    parse_envelope,
)
from agentgpt_remote.remote_errors import error_from_dict, error_to_dict


def test_message_round_trips_with_and_without_extras() -> None:
    envelope = parse_envelope(join_message(Kind.STEP, 3, [b"raw", b"er"], flags=5, extras=b"more", aux=9))
    assert (envelope.kind, envelope.flags, envelope.sequence, envelope.aux) == (Kind.STEP, 5, 3, 9)
    assert bytes(envelope.data[HEADER_BYTES : envelope.extras]) == b"rawer"
    assert bytes(envelope.extras_data) == b"more"
    assert not parse_envelope(join_message(Kind.STEP, 1, [b"x"])).extras_data


def test_header_keeps_raw_buffers_aligned() -> None:
    assert HEADER_BYTES % 16 == 0


@pytest.mark.parametrize("data", [b"", bytes(HEADER_BYTES - 1), b"\x02\0\0\0\xff\0\0\0" + bytes(24)])
def test_malformed_message_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_envelope(data)


def test_client_numbers_requests_and_remembers_the_unanswered() -> None:
    client = ClientSession()
    first, second = client.request(Kind.RESET, []), client.request(Kind.STEP, [b"a"])
    assert [parse_envelope(data).sequence for data in (first, second)] == [1, 2]
    assert client.pending == [first, second]
    reply = join_message(Kind.RESET, 1, [])
    assert client.receive(reply) is not None
    assert client.pending == [second]
    assert client.receive(reply) is None  # the same reply once more, after resuming
    assert parse_envelope(client.request(Kind.STEP, [])).aux == 1


def test_client_refuses_a_reply_to_what_it_did_not_ask() -> None:
    client = ClientSession()
    with pytest.raises(ProtocolError, match="request 4"):
        client.receive(join_message(Kind.STEP, 4, []))


def test_host_executes_each_request_once() -> None:
    client, host = ClientSession(), HostSession()
    first = parse_envelope(client.request(Kind.RESET, []))
    assert host.receive(first) is Arrival.EXECUTE
    assert host.receive(first) is Arrival.EXECUTING
    reply = host.answer(1, join_message(Kind.RESET, 1, []))
    assert host.receive(first) is Arrival.ANSWERED
    assert host.kept_reply(1) == reply
    assert host.executed == 1


def test_host_forgets_replies_that_arrived() -> None:
    client, host = ClientSession(), HostSession()
    host.receive(parse_envelope(client.request(Kind.RESET, [])))
    client.receive(host.answer(1, join_message(Kind.RESET, 1, [])))
    host.receive(parse_envelope(client.request(Kind.STEP, [])))
    with pytest.raises(ProtocolError, match="request 1"):
        host.kept_reply(1)


def test_host_refuses_a_gap() -> None:
    with pytest.raises(ProtocolError, match="request 2 arrived, expected 1"):
        HostSession().receive(parse_envelope(join_message(Kind.STEP, 2, [])))


def test_handshake_round_trips() -> None:
    opened = Opened(
        session_id="a",
        secret="b",
        num_envs=None,
        observation_space={"type": "Discrete"},
        action_space={},
        metadata=b"",
        render_mode=None,
        spec=None,
        limits=Limits(max_frame_bytes=1, resume_window_s=2.5),
        versions=versions(),
    )
    assert decode_from_host(encode_handshake(opened)) == opened
    for message in (Open(num_envs=3, source="x"), Resume.of("a", "b", 1)):
        assert decode_from_client(encode_handshake(message)) == message
    assert {"agentgpt-remote", "gymnasium", "numpy", "python"} == versions().keys()


@pytest.mark.parametrize(
    "error",
    [
        CapacityReached("full"),
        errors.UnsupportedSpace("odd"),
        gymnasium.error.NameNotFound("no such name"),
        gymnasium.error.ResetNeeded("reset first"),
    ],
)
def test_own_and_gymnasium_errors_cross_as_their_own_class(error: Exception) -> None:
    restored = error_from_dict(error_to_dict(error))
    assert type(restored) is type(error)
    assert str(restored) == str(error)


def test_other_errors_cross_as_remote_env_error_with_their_traceback() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    for error, name in (
        (ValueError("odd"), "ValueError"),
        (Unprintable(), "Unprintable"),
        (SystemExit(3), "SystemExit"),
    ):
        restored = error_from_dict(error_to_dict(error))
        assert isinstance(restored, RemoteEnvError)
        assert name in restored.remote_type


def test_fields_that_name_no_exception_are_a_remote_env_error() -> None:
    for fields in ({}, {"origin": "agentgpt_remote", "type": "annotations"}, {"origin": "gymnasium", "type": "Nope"}):
        assert isinstance(error_from_dict(fields), RemoteEnvError)
