"""The model run by torch, eagerly or compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentgpt_remote.errors import ConfigError
from agentgpt_remote.policy.cache import KVCache, Slots
from agentgpt_remote.policy.features import Float32
from agentgpt_remote.policy.history import Rows
from agentgpt_remote.policy.images import UInt8
from agentgpt_remote.policy.model import PolicyModel
from agentgpt_remote.policy.runner import Bools, SlotIndex


class TorchRunner:
    """Runs a :class:`PolicyModel`.

    Args:
        model: the actor.
        compiled: through ``torch.compile``, which takes some ten seconds at the first step of one and of many agents.
        why: it is this engine.
    """

    def __init__(self, model: PolicyModel, *, compiled: bool = False, why: str = "") -> None:
        self.model, self._why = model, why or "it was asked for"
        self._device = model.log_std.device
        self._compiled = compiled
        self.cache = model.make_cache(0)
        self.replace(model)

    def replace(self, model: PolicyModel) -> None:
        """Run another model from here on."""
        self.model = model
        self.log_std: Float32 = model.log_std.detach().cpu().numpy()
        self._step: Any = torch.compile(model.act_step, dynamic=True) if self._compiled else None

    def describe(self) -> dict[str, Any]:
        """Return which engine it is."""
        return {"engine": "compile" if self._compiled else "eager", "why": self._why}

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        old, new = self.cache, self.model.make_cache(capacity)
        count = old.num_slots
        new.keys[:, :count] = old.keys
        new.values[:, :count] = old.values
        new.clock[:count] = old.clock
        new.length[:count] = old.length
        self.cache = new

    @torch.inference_mode()
    def step(self, obs: Float32, previous: Float32, is_first: Bools, index: SlotIndex, pixels: UInt8 | None) -> Float32:
        """Return the outputs for one new token per slot."""
        tensors = (self._tensor(obs), self._tensor(previous), self._tensor(is_first))
        slots: Slots = index.at if isinstance(index.at, slice) else torch.from_numpy(index.rows).to(self._device)
        images = None if pixels is None else self._tensor(pixels)
        if self._step is None:
            return _array(self.model.act_step(*tensors, self.cache, slots, images))
        try:
            return _array(self._step(*tensors, self.cache, slots, images))
        except Exception as error:
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise ConfigError(
                    f"engine='compile': torch.compile failed ({str(error).splitlines()[0]}); it needs a C++ compiler "
                    "(gcc or clang): install one, or use engine='onnx' or 'eager'"
                ) from error
            raise

    @torch.inference_mode()
    def rebuild(self, rows: Rows, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> None:
        """Fill slots from the last tokens of their agents."""
        first = self._tensor(is_first)
        images = None if pixels is None else self._tensor(pixels)
        inputs = self.model.encoder.prepare(self._tensor(obs), self._tensor(previous), first, images)
        self.model.rebuild_cache(inputs, first, self.cache, torch.from_numpy(rows).to(self._device))

    @torch.inference_mode()
    def short(self, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> Float32:
        """Return the outputs for the last token of short sequences."""
        images = None if pixels is None else self._tensor(pixels)
        return _array(self.model.act_short(self._tensor(obs), self._tensor(previous), self._tensor(is_first), images))

    def _tensor(self, array: Any) -> Tensor:
        # A copy: the observation may not be writable, and belongs to the caller.
        return torch.tensor(array, device=self._device)


def _array(params: Tensor) -> Float32:
    result: Float32 = params.cpu().numpy()
    return result


class SharedCache:
    """A torch cache on the CPU as the arrays that another engine reads and writes."""

    def __init__(self, cache: KVCache) -> None:
        self.keys: Float32 = cache.keys.numpy()
        self.values: Float32 = cache.values.numpy()
        self.clock: Rows = np.asarray(cache.clock.numpy())
        self.length: Rows = np.asarray(cache.length.numpy())
