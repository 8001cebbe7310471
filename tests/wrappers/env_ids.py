"""Ids of Gymnasium's own environments that can be made here, by family."""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym

_NEEDS = {"classic_control": None, "toy_text": None, "mujoco": "mujoco", "box2d": "Box2D"}
_FIRST_MUJOCO_VERSION = 4  # earlier ones need mujoco-py, which is no longer maintained
_UNUSABLE = ("Pusher-v4",)  # Gymnasium refuses to make it with MuJoCo 3


def _latest(ids: list[str]) -> list[str]:
    versions: dict[str, int] = {}
    for env_id in ids:
        name, _, version = env_id.rpartition("-v")
        versions[name] = max(versions.get(name, 0), int(version))
    return sorted(f"{name}-v{version}" for name, version in versions.items())


def ids_of(*families: str, all_versions: bool = False) -> list[str]:
    """Return the newest version of each id, or all of them, of the families whose simulators are installed."""
    found = []
    for family in families:
        needed = _NEEDS[family]
        if needed is not None and importlib.util.find_spec(needed) is None:
            continue
        prefix = f"gymnasium.envs.{family}"
        ids = [
            spec.id
            for spec in gym.registry.values()
            if isinstance(spec.entry_point, str)
            and spec.entry_point.startswith(prefix)
            and spec.version is not None
            and spec.id not in _UNUSABLE
            and (family != "mujoco" or spec.version >= _FIRST_MUJOCO_VERSION)
        ]
        found += sorted(ids) if all_versions else _latest(ids)
    return found


def make_any(env_id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make any environment: what a host serves whose clients choose."""
    return gym.make(env_id, **kwargs)
