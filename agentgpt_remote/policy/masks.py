"""Action masks: which actions an environment allows, from ``info["action_mask"]`` to one row of bools per agent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from agentgpt_remote.errors import InvalidObservation
from agentgpt_remote.policy.features import CATEGORICAL, ActionFeatures, Leaf

MASK_KEY = "action_mask"
Bools = NDArray[np.bool_]
_Path = tuple[str | int, ...]


class ActionMasks:
    """Reads the masks of an action space.

    A row holds a bool for each category of each categorical column (Discrete, MultiDiscrete), in the order of the
    columns: True where it is allowed. Other leaves have no mask.

    Args:
        actions: the compact vector of the action space.

    Attributes:
        width: bools of a row.
    """

    def __init__(self, actions: ActionFeatures) -> None:
        self._space = actions.space
        self._sizes = actions.category_sizes
        self.width = sum(self._sizes)
        self._starts = np.cumsum([0, *self._sizes[:-1]])
        self._leaves: dict[_Path, tuple[Leaf, slice]] = {}
        start = 0
        for leaf in actions.leaves:
            if leaf.kind == CATEGORICAL:
                self._leaves[leaf.path] = (leaf, slice(start, start + sum(leaf.sizes)))
                start += sum(leaf.sizes)

    def read(self, masks: Any, agents: Sequence[Any], *, present: Any = None, final: Bools | None = None) -> Bools:
        """Return one row per agent.

        Args:
            masks: an array (n, width); or a list, tuple or object array with one mask per agent, None for one that
                is allowed everything; or a dict of batched masks for a Dict action space, as infos hold it. One mask
                is what ``info["action_mask"]`` is for one environment: (n,) for Discrete, all columns one after
                another or a tuple of one per column for MultiDiscrete, and a nest of them for Dict and Tuple.
            agents: what errors call the n agents.
            present: bool array (n,): who has a mask at all; None stands for everyone.
            final: bool array (n,): agents at the end of an episode, where nothing needs to be allowed.

        Raises:
            InvalidObservation: a mask has the wrong shape, or allows nothing; names the agent.
        """
        n = len(agents)
        if isinstance(masks, np.ndarray) and masks.dtype != object and masks.shape == (n, self.width):
            rows = self._flags(masks, agents)
        else:
            rows = np.ones((n, self.width), np.bool_)
            if not isinstance(masks, dict) and (not isinstance(masks, list | tuple | np.ndarray) or len(masks) != n):
                raise InvalidObservation(
                    f"action masks are {_what(masks)}: expected an array of shape ({n}, {self.width}), or one each "
                    f"for {n} agents"
                )
            for index, agent in enumerate(agents):
                if present is None or present[index]:
                    self._place(self._space, (), _row(masks, index, self._space), rows[index], agent)
        if present is not None:
            rows |= ~np.asarray(present, np.bool_)[:, None]
        self._check_choice(rows, agents, final)
        return rows

    def _flags(self, masks: NDArray[Any], agents: Sequence[Any]) -> Bools:
        if masks.dtype == np.bool_:
            return masks.copy()
        wrong = (masks != 0) & (masks != 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InvalidObservation(
                f"action_mask of agent {agents[row]!r} holds {masks[row, column]}: expected 0 or 1"
            )
        flags: Bools = masks != 0
        return flags

    def _check_choice(self, rows: Bools, agents: Sequence[Any], final: Bools | None) -> None:
        if rows.all() or not self.width:
            return
        none = ~np.logical_or.reduceat(rows, self._starts, axis=1)  # (n, columns)
        if final is not None:
            for index, column in np.argwhere(none & final[:, None]):
                rows[index, self._starts[column] : self._starts[column] + self._sizes[column]] = True
            none &= ~final[:, None]
        if none.any():
            index, column = np.argwhere(none)[0]
            where = f" in column {column}" if len(self._sizes) > 1 else ""
            raise InvalidObservation(
                f"action_mask of agent {agents[index]!r} allows no action{where}: expected shape {self._shape()} with "
                "at least one that is allowed"
            )

    def _shape(self) -> str:
        return f"({self.width},)" if len(self._sizes) == 1 else " + ".join(f"({size},)" for size in self._sizes)

    def _place(self, space: Any, path: _Path, mask: Any, row: Bools, agent: Any) -> None:
        """Write one agent's mask of one part of the space to its row."""
        if mask is None:
            return
        where = MASK_KEY + "".join(f"[{key!r}]" for key in path) + f" of agent {agent!r}"
        if type(space) is spaces.Dict:
            if not isinstance(mask, dict) or not mask.keys() <= space.spaces.keys():
                got = f"has the keys {sorted(mask)}" if isinstance(mask, dict) else f"is {_what(mask)}"
                raise InvalidObservation(f"{where} {got}: expected a dict with keys of {sorted(space.spaces)}")
            for key, part in mask.items():
                self._place(space.spaces[key], (*path, key), part, row, agent)
        elif type(space) is spaces.Tuple:
            if not isinstance(mask, list | tuple) or len(mask) != len(space.spaces):
                raise InvalidObservation(f"{where} is {_what(mask)}: expected a tuple of {len(space.spaces)}")
            for index, (child, part) in enumerate(zip(space.spaces, mask, strict=True)):
                self._place(child, (*path, index), part, row, agent)
        elif path not in self._leaves:
            raise InvalidObservation(f"{where} is of {space}, which has no masks: leave it out or set it to None")
        else:
            leaf, columns = self._leaves[path]
            row[columns] = self._flags(_flat(leaf, mask, where)[None], [agent])[0]


def _row(masks: Any, index: int, space: Any) -> Any:
    """Return one agent's mask from a batch of them; a key ``_x`` beside ``x`` says who has ``x``."""
    if not isinstance(masks, dict):
        return masks[index]
    children = space.spaces if type(space) is spaces.Dict else {}
    result = {}
    for key, part in masks.items():
        if isinstance(key, str) and key.startswith("_") and key[1:] in masks and key not in children:
            continue
        present = masks.get(f"_{key}") if f"_{key}" not in children else None
        result[key] = None if present is not None and not present[index] else _row(part, index, children.get(key))
    return result


def _flat(leaf: Leaf, mask: Any, where: str) -> NDArray[Any]:
    """Return the mask of a leaf as one array, all its columns one after another."""
    if isinstance(mask, dict):
        raise InvalidObservation(f"{where} is a dict: expected shape ({sum(leaf.sizes)},)")
    parts = _columns(mask)
    if len(parts) == len(leaf.sizes) and all(
        part.shape == (size,) for part, size in zip(parts, leaf.sizes, strict=True)
    ):
        return np.concatenate(parts)
    if len(parts) == 1 and parts[0].shape == (sum(leaf.sizes),):
        return parts[0]
    columns = " or one each of " + ", ".join(f"({size},)" for size in leaf.sizes) if len(leaf.sizes) > 1 else ""
    got = parts[0].shape if len(parts) == 1 else ", ".join(str(part.shape) for part in parts)
    raise InvalidObservation(f"{where} has shape {got}: expected ({sum(leaf.sizes)},){columns}")


def _columns(mask: Any) -> list[NDArray[Any]]:
    """Return the masks of columns that are nested in tuples, lists or further axes, in order."""
    nested = isinstance(mask, list | tuple) and any(np.ndim(part) or isinstance(part, list | tuple) for part in mask)
    if nested or (isinstance(mask, np.ndarray) and (mask.ndim > 1 or mask.dtype == object)):
        return [part for item in mask for part in _columns(item)]
    array = np.asarray(mask)
    return [array if array.dtype.kind in "biuf" else np.zeros(0)]


def _what(value: Any) -> str:
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"a {type(value).__name__}{shape}"
