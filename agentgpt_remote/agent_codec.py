"""Messages of an environment of many agents: a block of raw rows for each behaviour, and ids only where they changed.

A reply holds, behind the header, a table of uint32: the number of behaviours, then for each of them its counts of
acting and of ended agents, the number of its list of ids, and flags. The blocks follow in the same order: of the acting
agents their observations, rewards (float64), ``begins`` (one byte each) and, where flagged, action masks; of the ended
agents their observations, rewards, ``terminated`` and ``truncated``. Each array is padded to 16 bytes. A packed value
holds what is irregular: behaviours that are new, lists of ids that the client does not know yet, ids of ended agents,
infos, and observations that don't fit their space.

A request tells how many behaviours the client knows and, for each, the number of the list of ids that its actions
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from agentgpt_remote.agents import Acting, Behavior, Ended, Turn, Turns, check_counts, rows_of
from agentgpt_remote.codec import Layout
from agentgpt_remote.errors import InvalidAction, NotSendable, ProtocolError
from agentgpt_remote.packing import pack_info, pack_value, unpack_value
from agentgpt_remote.protocol import HEADER_BYTES, Envelope
from agentgpt_remote.spaces import space_from_dict, space_to_dict
from agentgpt_remote.steps import DroppedCallback, Payload, WarnOnce

_ACTING_PACKED: Final = 1
_ENDED_PACKED: Final = 2
_MASKED: Final = 4
_COLUMNS: Final = 4
_ALIGNMENT: Final = 16


def behavior_to_dict(behavior: Behavior) -> dict[str, Any]:
    """Describe a behaviour with values that msgpack can hold."""
    name = behavior.name
    return {
        "name": name,
        "observation_space": space_to_dict(behavior.observation_space, f"observation of {name}"),
        "action_space": space_to_dict(behavior.action_space, f"action of {name}"),
        "mask_width": behavior.mask_width,
        "agent_ids": list(behavior.agent_ids),
    }


def behavior_from_dict(description: Any) -> Behavior:
    """Rebuild a behaviour from its description.

    Raises:
        ProtocolError: it is malformed.
        UnsupportedSpace: a space is malformed, or not known to this version.
    """
    try:
        name, width, ids = (description[key] for key in ("name", "mask_width", "agent_ids"))
        spaces = description["observation_space"], description["action_space"]
    except (LookupError, TypeError) as error:
        raise ProtocolError(f"a behaviour's description is malformed: {error!r}") from error
    if not isinstance(name, str) or type(width) is not int or not all(isinstance(one, str) for one in ids):
        raise ProtocolError(f"the description of behaviour {name!r:.60} is malformed")
    observation_space = space_from_dict(spaces[0], f"observation of {name}")
    action_space = space_from_dict(spaces[1], f"action of {name}")
    return Behavior(
        name=name,
        observation_space=observation_space,
        action_space=action_space,
        mask_width=width,
        agent_ids=tuple(ids),
    )


class _Side:
    """What one side of a session keeps of a behaviour."""

    def __init__(self, behavior: Behavior) -> None:
        self.behavior = behavior
        self.observations = Layout(behavior.observation_space)
        self.actions = Layout(behavior.action_space)
        self.ids: tuple[str, ...] = ()
        self.ids_number = 0  # counts the lists of ids; 0 is the empty one
        self.packed_ids: list[str] = []


def _pad(parts: list[Any], nbytes: int) -> None:
    if nbytes % _ALIGNMENT:
        parts.append(bytes(-nbytes % _ALIGNMENT))


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % _ALIGNMENT


class HostAgentsCodec:
    """The host's end: turns out, actions in.

    Args:
        behaviors: of the environment, which may add to them.
    """

    def __init__(self, behaviors: dict[str, Behavior]) -> None:
        self._behaviors = behaviors
        self._sides: dict[str, _Side] = {}
        self._known: list[int] = []  # numbers of the lists of ids that the client knows, by behaviour
        self._add_behaviors()

    def _add_behaviors(self) -> None:
        for name, behavior in self._behaviors.items():
            if name not in self._sides:
                self._sides[name] = _Side(behavior)

    def describe(self) -> list[dict[str, Any]]:
        """Return the descriptions of the behaviours so far."""
        return [behavior_to_dict(side.behavior) for side in self._sides.values()]

    def decode_reset(self, envelope: Envelope) -> tuple[int | None, dict[str, Any] | None]:
        """Return the seed and the options of a request to reset.

        Raises:
            ProtocolError: it is malformed.
        """
        values = unpack_value(envelope.extras_data) if envelope.extras else None
        if not isinstance(values, list) or len(values) != 3 or not isinstance(values[2], list):
            raise ProtocolError("a request to reset many agents must hold a seed, options and what the client knows")
        seed, options, self._known = values
        return seed, options

    def decode_actions(self, envelope: Envelope) -> dict[str, Any]:
        """Return the actions of a step request, by behaviour.

        Raises:
            ProtocolError: it is malformed, or answers an older reply than the last one.
        """
        data, at = envelope.data, HEADER_BYTES
        count = int(np.frombuffer(data, np.uint32, 1, at)[0])
        table = np.frombuffer(data, np.uint32, 2 * count, at + 4).reshape(count, 2)
        at += _padded(4 + 8 * count)
        packed = unpack_value(envelope.extras_data) if envelope.extras else {}
        actions: dict[str, Any] = {}
        self._known = table[:, 1].tolist()
        for index, (side, (n, number)) in enumerate(zip(self._sides.values(), table.tolist(), strict=False)):
            if number != side.ids_number or n != len(side.ids):
                raise ProtocolError(
                    f"{n} actions for behaviour {side.behavior.name!r} answer list {number} of agents, the latest is "
                    f"{side.ids_number} with {len(side.ids)}: a reply was given up; call reset()"
                )
            if index in packed:
                actions[side.behavior.name] = packed[index]
            elif n:
                actions[side.behavior.name] = side.actions.decode_batch(data, at, n, copy=True)
                at += side.actions.nbytes(n)
        missing = {side.behavior.name: side.ids for side in self._sides.values() if side.ids}
        check_counts(self._behaviors, missing, actions)
        return actions

    def encode(self, turns: Turns) -> Payload:
        """Return the payload of the reply to a reset or a step."""
        self._add_behaviors()
        table = np.zeros((len(self._sides), _COLUMNS), np.uint32)
        parts: list[Any] = []
        extras: dict[str, Any] = {}
        infos: dict[str, Any] = {}
        for index, side in enumerate(self._sides.values()):
            turn = turns.get(side.behavior.name)
            ids = turn.acting.agent_ids if turn is not None else ()
            if ids != side.ids:
                side.ids, side.ids_number = ids, side.ids_number + 1
            known = self._known[index] if index < len(self._known) else 0
            if side.ids_number != known:
                extras.setdefault("ids", {})[index] = list(ids)
            table[index, 2] = side.ids_number
            if turn is not None:
                table[index] = self._encode_turn(side, turn, index, parts, extras)
                if turn.acting.infos or turn.ended.infos:
                    infos[side.behavior.name] = {"acting": turn.acting.infos, "ended": turn.ended.infos}
        if len(self._known) < len(self._sides):
            extras["behaviors"] = self.describe()[len(self._known) :]
        if infos:
            data, told = pack_info(infos)
            extras["infos"] = data
            if told:
                extras["dropped"] = told
        head = [np.uint32(len(self._sides)).tobytes() + table.tobytes()]
        _pad(head, 4 + table.nbytes)
        return [*head, *parts], 0, pack_value(extras) if extras else b""

    def _encode_turn(
        self, side: _Side, turn: Turn, index: int, parts: list[Any], extras: dict[str, Any]
    ) -> tuple[int, int, int, int]:
        acting, ended = turn
        n, m, flags = len(acting.agent_ids), len(ended.agent_ids), 0
        if n:
            if not self._observations(side, acting.observations, n, parts):
                flags |= _ACTING_PACKED
                extras.setdefault("acting", {})[index] = rows_of(acting.observations)
            _append(parts, acting.rewards.astype(np.float64), acting.begins)
            if acting.action_mask is not None:
                flags |= _MASKED
                _append(parts, np.ascontiguousarray(acting.action_mask, np.bool_))
        if m:
            if not self._observations(side, ended.observations, m, parts):
                flags |= _ENDED_PACKED
                extras.setdefault("ended", {})[index] = rows_of(ended.observations)
            _append(parts, ended.rewards.astype(np.float64), ended.terminated, ended.truncated)
            extras.setdefault("ended_ids", {})[index] = list(ended.agent_ids)
        return n, m, side.ids_number, flags

    def _observations(self, side: _Side, observations: Any, n: int, parts: list[Any]) -> bool:
        added: list[Any] = []
        if isinstance(observations, list) or not side.observations.batch_parts(observations, n, added):
            return False
        parts += added
        return True


def _append(parts: list[Any], *arrays: np.ndarray[Any, Any]) -> None:
    for array in arrays:
        data = array.tobytes()
        parts.append(data)
        _pad(parts, len(data))


class ClientAgentsCodec:
    """The client's end: actions out, turns in.

    Args:
        described: the host's descriptions of its behaviours.

    Attributes:
        behaviors: by name, those so far.
    """

    def __init__(self, described: list[dict[str, Any]], on_dropped: DroppedCallback | None = None) -> None:
        self.behaviors: dict[str, Behavior] = {}
        self._sides: dict[str, _Side] = {}
        self._on_dropped = on_dropped or WarnOnce()
        self._add(described)

    def _add(self, described: Any) -> None:
        for item in described:
            behavior = behavior_from_dict(item)
            self.behaviors[behavior.name] = behavior
            self._sides[behavior.name] = _Side(behavior)

    @property
    def acting(self) -> dict[str, tuple[str, ...]]:
        """Ids of the agents that need an action, by behaviour."""
        return {name: side.ids for name, side in self._sides.items() if side.ids}

    def encode_reset(self, seed: int | None, options: dict[str, Any] | None) -> bytes:
        """Return the packed value of a request to reset.

        Raises:
            NotSendable: ``options`` holds a value that can't be sent.
        """
        return pack_value([seed, options, [side.ids_number for side in self._sides.values()]])

    def encode_actions(self, actions: Mapping[str, Any]) -> Payload:
        """Return the payload of a step request.

        Args:
            actions: by behaviour: a batch, or a list of single actions, in the order of the acting agents.

        Raises:
            InvalidAction: there is not one action for each acting agent, or one can't be sent.
        """
        check_counts(self.behaviors, {name: side.ids for name, side in self._sides.items()}, actions)
        table = np.zeros((len(self._sides), 2), np.uint32)
        parts: list[Any] = []
        packed: dict[int, Any] = {}
        for index, (name, side) in enumerate(self._sides.items()):
            table[index] = len(side.ids), side.ids_number
            if not side.ids:
                continue
            added: list[Any] = []
            batch = actions[name]
            if isinstance(batch, list) or not side.actions.batch_parts(batch, len(side.ids), added):
                packed[index] = batch
            parts += added if index not in packed else []
        head = [np.uint32(len(self._sides)).tobytes() + table.tobytes()]
        _pad(head, 4 + table.nbytes)
        try:
            return [*head, *parts], 0, pack_value(packed) if packed else b""
        except NotSendable as error:
            raise InvalidAction(f"an action can't be sent: {error}") from error

    def decode(self, envelope: Envelope) -> Turns:
        """Return what a reply holds.

        Raises:
            ProtocolError: it is malformed.
        """
        extras = unpack_value(envelope.extras_data) if envelope.extras else {}
        try:
            return self._decode(envelope.data, extras)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ProtocolError(f"the host sent a malformed reply of many agents: {error!r}") from error

    def _decode(self, data: Any, extras: dict[str, Any]) -> Turns:
        self._add(extras.get("behaviors", ()))
        count = int(np.frombuffer(data, np.uint32, 1, HEADER_BYTES)[0])
        if count != len(self._sides):
            raise ProtocolError(f"the host has {count} behaviours, {len(self._sides)} are known")
        table = np.frombuffer(data, np.uint32, _COLUMNS * count, HEADER_BYTES + 4).reshape(count, _COLUMNS)
        if "dropped" in extras:
            self._on_dropped(extras["dropped"])
        infos = unpack_value(extras["infos"]) if "infos" in extras else {}
        reader = _Reader(data, HEADER_BYTES + _padded(4 + table.nbytes))
        turns: Turns = {}
        for index, (side, row) in enumerate(zip(self._sides.values(), table.tolist(), strict=True)):
            self._take_ids(side, row[2], row[0], extras.get("ids", {}).get(index))
            told = infos.get(side.behavior.name, {"acting": {}, "ended": {}})
            turns[side.behavior.name] = reader.turn(side, row, index, extras, told)
        return turns

    def _take_ids(self, side: _Side, number: int, count: int, ids: list[str] | None) -> None:
        if ids is not None:
            side.ids, side.ids_number = tuple(ids), number
        if side.ids_number != number or len(side.ids) != count:
            raise ProtocolError(f"the ids of behaviour {side.behavior.name!r} are missing")


class _Reader:
    """Reads the blocks of a reply, one after the other."""

    def __init__(self, data: Any, at: int) -> None:
        self._data, self._at = data, at

    def array(self, dtype: Any, *shape: int) -> Any:
        count = int(np.prod(shape))
        array = np.frombuffer(self._data, dtype, count, self._at).reshape(shape).copy()
        self._at += _padded(array.nbytes)
        return array

    def observations(self, side: _Side, n: int, packed: list[Any] | None) -> Any:
        if packed is not None:
            return packed
        batch = side.observations.decode_batch(self._data, self._at, n) if n or side.observations.is_fixed else []
        self._at += side.observations.nbytes(n) if n else 0
        return batch

    def turn(self, side: _Side, row: list[int], index: int, extras: dict[str, Any], told: dict[str, Any]) -> Turn:
        n, m, _, flags = row
        packed = extras["acting"][index] if flags & _ACTING_PACKED else None
        acting_obs = self.observations(side, n, packed)
        rewards, begins = self.array(np.float64, n), self.array(np.bool_, n)
        mask = self.array(np.bool_, n, side.behavior.mask_width) if flags & _MASKED else None
        acting = Acting(side.ids, acting_obs, rewards, begins, mask, told["acting"])
        packed = extras["ended"][index] if flags & _ENDED_PACKED else None
        ended_obs = self.observations(side, m, packed)
        rewards, terminated, truncated = self.array(np.float64, m), self.array(np.bool_, m), self.array(np.bool_, m)
        ids = tuple(extras["ended_ids"][index]) if m else ()
        return Turn(acting, Ended(ids, ended_obs, rewards, terminated, truncated, told["ended"]))
