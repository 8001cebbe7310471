"""Which parts of a run's state every rank has in common, and which are each rank's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from agentgpt_remote.trainer.ranks import Ranks

State = dict[str, Any]
_Names = Mapping[str, Any]
# What a rank has of its own, by the keys of TrainingSession.state_dict; a mapping goes on inside.
_OWN: _Names = {
    "generator": None,
    "streams": None,
    "learner": {"rng": None, "generator": None},
    "rewards": {"returns": None, "pending": None},
    "acting": {"weights": None, "noise": None},
    "collector": {"env_steps": None, "episodes": None, "lanes": None},
}
logger = logging.getLogger("agentgpt_remote.trainer")


def own_part(state: State, names: _Names = _OWN) -> State:
    """Return what a rank has of its own: its streams, episodes, environments and random generators."""
    return {
        name: state[name] if inner is None else own_part(state[name], inner)
        for name, inner in names.items()
        if name in state
    }


def common_part(state: State, names: _Names = _OWN) -> State:
    """Return what is the same for all ranks: weights, optimizers, normalisers, counters."""
    return {
        name: value if name not in names else common_part(value, names[name])
        for name, value in state.items()
        if name not in names or names[name] is not None
    }


def joined(common: State, own: State) -> State:
    """Return the whole of both parts."""
    both = common | own
    return both | {name: joined(common[name], own[name]) for name in common if name in own}


def resumed_state(loaded: State | None, fresh: Callable[[], State], ranks: Ranks) -> State | None:
    """Return the whole state that this rank goes on from.

    Args:
        loaded: this rank's checkpoint: the first one's is whole, that of others their own part or None.
        fresh: returns the state of this rank's session, which has not started.
        ranks: that learn together now.

    Returns:
        The state; None where the first rank has no checkpoint. Where the run had another number of ranks, and on a
        rank whose part is missing, the streams are empty and the episodes new.
    """
    common = ranks.first(None if loaded is None else common_part(loaded))
    if common is None:
        return None
    before = int(common.get("ranks", 1))
    if before == ranks.size and loaded is not None:
        return joined(common, own_part(loaded))
    why = f"the run had {before} ranks, now {ranks.size}" if before != ranks.size else "its part is missing"
    logger.warning("rank=%d %s: it goes on with empty streams and new episodes", ranks.rank, why)
    whole = joined(common, own_part(fresh()))
    whole["collector"]["env_steps"] = common["env_steps"]
    return whole | {"base_steps": common["env_steps"]}
