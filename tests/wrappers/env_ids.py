"""Ids of Gymnasium's own environments that can be made here, by family."""

from __future__ import annotations

import importlib.util

import gymnasium as gym

_NEEDS = {"classic_control": None, "toy_text": None, "mujoco": "mujoco", "box2d": "Box2D"}


def _latest(ids: list[str]) -> list[str]:
    versions: dict[str, int] = {}
    for env_id in ids:
        name, _, version = env_id.rpartition("-v")
        versions[name] = max(versions.get(name, 0), int(version))
    return sorted(f"{name}-v{version}" for name, version in versions.items())


def ids_of(*families: str) -> list[str]:
    """Return the newest version of each id of the families whose simulators are installed."""
    found = []
    for family in families:
        needed = _NEEDS[family]
        if needed is not None and importlib.util.find_spec(needed) is None:
            continue
        prefix = f"gymnasium.envs.{family}"
        found += _latest(
            [
                spec.id
                for spec in gym.registry.values()
                if isinstance(spec.entry_point, str)
                and spec.entry_point.startswith(prefix)
                and spec.version is not None
            ]
        )
    return found
