"""The engine that is fastest here: measured at the start, for one agent and for many."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.history import Rows
from agentgpt_remote.policy.images import UInt8
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.onnx_runner import OnnxModel, OnnxRunner
from agentgpt_remote.policy.runner import Bools, SlotIndex
from agentgpt_remote.policy.torch_runner import SharedCache, TorchRunner

_SIZES = (1, 8, 64)
_CALLS, _SECONDS = 7, 0.06
_MAX_SCRATCH_BYTES = 64 * 2**20


class TwinModel:
    """One model twice: in torch, on the CPU, and in ONNX Runtime."""

    def __init__(self, eager: PolicyModel, onnx: OnnxModel) -> None:
        self.eager, self.onnx, self.config = eager, onnx, eager.config
        self.observation_space, self.action_space = eager.observation_space, eager.action_space
        self.observations, self.actions = eager.observations, eager.actions


class AutoRunner:
    """Runs a model by torch or by ONNX Runtime, whichever is faster for as many agents; both use one cache.

    ``torch.compile`` is not tried: it would delay the start by tens of seconds.

    Args:
        model: the actor, in both.
        max_agents: most agents that there can be.
    """

    def __init__(self, model: TwinModel, max_agents: int | None = None) -> None:
        self._eager, self._onnx = TorchRunner(model.eager), OnnxRunner(model.onnx)
        self.model, self.log_std = model, self._eager.log_std
        self.times_ms = self._measure(min(max_agents or _SIZES[-1], _SIZES[-1]))
        sizes = sorted(self.times_ms)
        # The choice for a number of agents is that of the nearest size measured below it.
        faster = [self.times_ms[size]["onnx"] <= self.times_ms[size]["eager"] for size in sizes]
        self._limits = list(zip(sizes, faster, strict=True))
        self._share()

    def _measure(self, most: int) -> dict[int, dict[str, float]]:
        model = self.model
        result: dict[int, dict[str, float]] = {}
        config = model.config
        agent_bytes = 8 * config.num_layers * config.d_model * config.max_input_states
        for size in _SIZES:
            if size > 1 and (size > most or size * agent_bytes > _MAX_SCRATCH_BYTES):
                break
            obs = np.zeros((size, model.observations.width), np.float32)
            previous = np.zeros((size, model.actions.width), np.float32)
            pixels = np.zeros((size, model.observations.pixel_width), np.uint8)
            images = pixels if model.observations.pixel_width else None
            index = SlotIndex(np.arange(size), slice(0, size))
            times = {}
            for name, runner in (
                ("eager", TorchRunner(model.eager)),
                ("onnx", OnnxRunner(model.onnx)),
            ):
                runner.grow(size)
                call = functools.partial(runner.step, obs, previous, np.zeros(size, np.bool_), index, images)
                times[name] = round(1e3 * _fastest(call), 4)
            result[size] = times
        return result

    def _share(self) -> None:
        self._onnx.cache = SharedCache(self._eager.cache)

    def _chosen(self, count: int) -> TorchRunner | OnnxRunner:
        for size, onnx in reversed(self._limits):
            if count >= size:
                return self._onnx if onnx else self._eager
        return self._eager

    def describe(self) -> dict[str, Any]:
        """Return which engine serves how many agents, and the times that say so."""
        chosen = {size: "onnx" if onnx else "eager" for size, onnx in self._limits}
        parts = [
            f"{chosen[size]} from {size} agent{'s' if size > 1 else ''} on "
            f"(eager {times['eager']:.2f} ms, onnx {times['onnx']:.2f} ms)"
            for size, times in self.times_ms.items()
        ]
        return {"engine": "auto", "chosen": {str(k): v for k, v in chosen.items()}, "why": "; ".join(parts)}

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        self._eager.grow(capacity)
        self._share()

    def step(self, obs: Float32, previous: Float32, is_first: Bools, index: SlotIndex, pixels: UInt8 | None) -> Float32:
        """Return the outputs for one new token per slot."""
        return self._chosen(len(obs)).step(obs, previous, is_first, index, pixels)

    def rebuild(self, rows: Rows, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> None:
        """Fill slots from the last tokens of their agents."""
        self._eager.rebuild(rows, obs, previous, is_first, pixels)

    def short(self, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> Float32:
        """Return the outputs for the last token of short sequences."""
        return self._eager.short(obs, previous, is_first, pixels)

    def replace(self, model: TwinModel) -> None:
        """Run another model from here on."""
        self._eager.replace(model.eager)
        self._onnx.replace(model.onnx)
        self.model, self.log_std = model, self._eager.log_std


def _fastest(call: Callable[[], object]) -> float:
    """Return the shortest of some durations of a call, in seconds."""
    call()
    best, begun = float("inf"), time.perf_counter()
    for _ in range(_CALLS):
        start = time.perf_counter()
        call()
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begun > _SECONDS:
            break
    return best
