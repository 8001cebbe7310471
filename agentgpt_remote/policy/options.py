"""What a call for actions asks for beside its observations, without torch."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class ActOptions:
    """How one batch of actions is chosen.

    Attributes:
        deterministic: take the likeliest actions.
        seed: of the draws of this call, from 0 to 2**64 - 1.
        num_input_states: how many steps the model sees; 0 stands for the maximum.
        action_mask: bool array of shape (n, categories), what is allowed; None allows everything.
        in_control: bool array of shape (n,), who acts; the others take the neutral action. None stands for all.
    """

    deterministic: bool = True
    seed: int = 0
    num_input_states: int = 0
    action_mask: Bools | None = None
    in_control: Bools | None = None


def mix(seed: int, number: int) -> int:
    """Return a seed of 64 bits for one of many calls (the finalizer of SplitMix64; Steele et al. 2014)."""
    z = (seed + (number + 1) * _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * _MULTIPLY_1) & _MASK
    z = ((z ^ (z >> 27)) * _MULTIPLY_2) & _MASK
    return z ^ (z >> 31)


def agent_key(agent: str) -> int:
    """Return a number that stands for an agent in draws."""
    return zlib.crc32(agent.encode())


def draw_control(seed: int, keys: Sequence[int], values: NDArray[np.float64]) -> Bools | None:
    """Draw who acts in one step.

    Whether an agent acts depends on the seed, its key and its control value only, not on who else is there.

    Args:
        seed: of this call.
        keys: one integer per agent.
        values: control values, float64 of shape (n,).

    Returns:
        bool array of shape (n,), True with the probability that the control value is; None where all are 1.
    """
    if (values >= 1.0).all():
        return None
    drawn = np.array([mix(seed, key) >> 11 for key in keys], np.float64) * 2.0**-53
    result: Bools = drawn < values
    return result
