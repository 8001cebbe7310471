"""The model run by ONNX Runtime, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from gymnasium import Space
from numpy.typing import NDArray

from agentgpt_remote.errors import BundleError, ConfigError, UnsupportedSpace
from agentgpt_remote.policy.config import GPTConfig, rope_period
from agentgpt_remote.policy.features import ActionFeatures, Float32, ObservationFeatures
from agentgpt_remote.policy.history import Rows
from agentgpt_remote.policy.images import UInt8
from agentgpt_remote.policy.onnx_graph import StepGraph, cache_names
from agentgpt_remote.policy.runner import Bools, SlotIndex
from agentgpt_remote.spaces import space_from_dict

METADATA_KEY = "agentgpt_bundle"
_MAX_THREADS = 4
_MAX_BINDINGS = 8

_Layers = Float32 | list[Float32]  # arrays of one shape, in one array or apart


class OnnxModel:
    """A model as ONNX Runtime holds it.

    Args:
        observation_space: of one agent.
        action_space: of one agent.
        config: sizes.
        graph: the ONNX file's bytes.
        log_std: float32 array of shape (numeric action columns,).
        whole: the file has the whole cache as outputs, as exported ones have.
        threads: of ONNX Runtime; by default the cores that are there, at most 4.

    Raises:
        BundleError: ONNX Runtime can't read the graph.
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: GPTConfig,
        *,
        graph: bytes,
        log_std: Float32,
        whole: bool = False,
        threads: int | None = None,
    ) -> None:
        self.observation_space, self.action_space, self.config = observation_space, action_space, config
        self.observations = ObservationFeatures(observation_space, images=config.image_encoder == "cnn")
        self.actions = ActionFeatures(action_space)
        self.log_std, self.whole = log_std, whole
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or default_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait must not keep the cores of the game busy.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BundleError(f"ONNX Runtime {ort.__version__} can't read the model: {error}") from error

    @classmethod
    def of_weights(
        cls,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: GPTConfig,
        weights: Mapping[str, NDArray[Any]],
        threads: int | None = None,
    ) -> OnnxModel:
        """Build from a bundle's weights."""
        graph = StepGraph(observation_space, action_space, config, weights).build({}, whole=False)
        log_std = np.asarray(weights["log_std"], np.float32)
        return cls(observation_space, action_space, config, graph=graph, log_std=log_std, threads=threads)


def load_onnx_file(path: Path) -> OnnxModel:
    """Load a file that ``agentgpt export`` wrote.

    Raises:
        BundleError: it is missing, damaged, or from elsewhere.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} can't be read ({error}): `agentgpt export BUNDLE --out {path}` writes it") from error
    try:
        session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except Exception as error:
        raise BundleError(f"{path} is damaged or no ONNX file ({error}): export it again") from error
    if text is None:
        raise BundleError(f"{path} was not written by `agentgpt export`: expected one that was")
    try:
        fields = json.loads(text)
        spaces = [space_from_dict(fields[name]) for name in ("observation_space", "action_space")]
        config, log_std = GPTConfig.from_dict(fields["model"]), np.asarray(fields["log_std"], np.float32)
        return OnnxModel(spaces[0], spaces[1], config, graph=data, log_std=log_std, whole=True)
    except (KeyError, TypeError, ValueError, ConfigError, UnsupportedSpace) as error:
        raise BundleError(f"{path} is from another version of agentgpt-remote ({error!r}): export it again") from error


def _dtype(name: str) -> type:
    """Return the dtype of an input that belongs to a token."""
    return {"is_first": np.int64, "pixels": np.uint8}.get(name, np.float32)


def default_threads() -> int:
    """Return how many threads to use: OMP_NUM_THREADS where it is set, else the cores that are there, at most 4."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, cores)


class Cache(Protocol):
    """Keys and values in rings, see :class:`~agentgpt_remote.policy.cache.KVCache`.

    Attributes:
        keys: float32 (layers, slots, heads, window, head_size).
        values: the same.
        clock: int64 (slots,).
        length: int64 (slots,).
    """

    keys: Float32
    values: Float32
    clock: Rows
    length: Rows


class ArrayCache:
    """A cache of its own arrays."""

    def __init__(self, config: GPTConfig, slots: int) -> None:
        shape = (config.num_layers, slots, config.num_heads, config.max_input_states, config.head_size)
        self.keys: Float32 = np.zeros(shape, np.float32)
        self.values: Float32 = np.zeros(shape, np.float32)
        self.clock: Rows = np.zeros(slots, np.int64)
        self.length: Rows = np.zeros(slots, np.int64)

    def copy_from(self, other: ArrayCache) -> None:
        """Take the slots of a smaller cache."""
        count = len(other.clock)
        self.keys[:, :count], self.values[:, :count] = other.keys, other.values
        self.clock[:count], self.length[:count] = other.clock, other.length


class _Binding:
    """Inputs and outputs that ONNX Runtime knows where to find, for consecutive slots: a call then needs no names.

    Args:
        session: of the model.
        inputs: arrays by name, which calls change in place.
        outputs: groups of names; the outputs of a group have one shape and lie in one array.
        count: agents.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[list[str]],
        count: int,
    ) -> None:
        self._session, self.inputs = session, inputs
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        shapes = {output.name: output.shape for output in session.get_outputs()}
        self._outputs: list[Float32] = []
        for names in outputs:
            shape = [count if isinstance(size, str) else size for size in shapes[names[0]]]
            arrays = np.empty((len(names), *shape), np.float32)
            for name, array in zip(names, arrays, strict=True):
                self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            self._outputs.append(arrays)

    def run(self) -> list[Float32]:
        """Return the outputs of each group, which the next call overwrites."""
        self._session.run_with_iobinding(self._binding)
        return self._outputs


class OnnxRunner:
    """Runs an :class:`OnnxModel`.

    The caches of the agents that act are handed over as they lie in memory where their slots are consecutive; only what
    is new in them comes back.

    Args:
        model: the actor.
        why: it is this engine.
    """

    def __init__(self, model: OnnxModel, why: str = "") -> None:
        self._why = why or "it was asked for"
        self.cache: Cache = ArrayCache(model.config, 0)
        self.replace(model)

    def replace(self, model: OnnxModel) -> None:
        """Run another model from here on."""
        self.model, self.log_std = model, model.log_std
        config = model.config
        self._window, self._period = config.max_input_states, rope_period(config.max_input_states)
        names = [(cache_names(layer, "key"), cache_names(layer, "value")) for layer in range(config.num_layers)]
        result = 1 if model.whole else 2
        self._rings = [*(key[0] for key, _ in names), *(value[0] for _, value in names)]
        self._bindings: dict[tuple[int, int], _Binding] = {}
        self._bound_cache: Cache | None = None
        self._outputs = ["parameters"], [key[result] for key, _ in names], [value[result] for _, value in names]

    def describe(self) -> dict[str, Any]:
        """Return which engine it is."""
        return {"engine": "onnx", "why": self._why}

    def grow(self, capacity: int) -> None:
        """Make room for more slots."""
        new = ArrayCache(self.model.config, capacity)
        if isinstance(self.cache, ArrayCache):
            new.copy_from(self.cache)
        self.cache = new

    def step(self, obs: Float32, previous: Float32, is_first: Bools, index: SlotIndex, pixels: UInt8 | None) -> Float32:
        """Return the outputs for one new token per slot."""
        return self._run(self.cache, obs, previous, is_first, index.rows, index.at, pixels)

    def _run(
        self,
        cache: Cache,
        obs: Float32,
        previous: Float32,
        is_first: Bools,
        rows: Rows,
        at: slice | Rows,
        pixels: UInt8 | None,
    ) -> Float32:
        params: Float32
        keys: _Layers
        values: _Layers
        tokens: dict[str, Any] = {"observation": obs, "previous_action": previous, "is_first": is_first}
        if pixels is not None:
            tokens["pixels"] = pixels
        if isinstance(at, slice) and cache is self.cache and not self.model.whole:
            binding = self._bound(at, tokens)
            for name, value in tokens.items():
                binding.inputs[name][...] = value
            outputs, keys, values = binding.run()
            params = outputs[0].copy()
        else:
            params, keys, values = self._run_by_name(cache, tokens, at)
        self._write(cache, keys, values, rows, at)
        cache.length[at] = np.minimum(np.where(is_first, 0, cache.length[at]) + 1, self._window)
        cache.clock[at] = (cache.clock[at] + 1) % self._period
        return params

    def _run_by_name(
        self, cache: Cache, tokens: Mapping[str, NDArray[Any]], at: slice | Rows
    ) -> tuple[Float32, _Layers, _Layers]:
        """Return the outputs for any slots of any cache: the parameters, keys by layer and values by layer."""
        feeds: dict[str, Any] = {name: np.ascontiguousarray(value, _dtype(name)) for name, value in tokens.items()}
        feeds |= {"clock": cache.clock[at], "length": cache.length[at]}
        feeds |= {name: ring[at] for name, ring in zip(self._rings, (*cache.keys, *cache.values), strict=True)}
        params, *fresh = self.model.session.run([name for group in self._outputs for name in group], feeds)
        return params, fresh[: len(cache.keys)], fresh[len(cache.keys) :]

    def _write(self, cache: Cache, keys: _Layers, values: _Layers, rows: Rows, at: slice | Rows) -> None:
        """Take what a run has made of the last token, or the whole rings, as the model gives them."""
        ring_index = cache.clock[at] % self._window
        for ring, new in ((cache.keys, keys), (cache.values, values)):
            if self.model.whole:
                for layer, fresh in zip(ring, new, strict=True):
                    layer[at] = fresh
            elif len(rows) == 1 and isinstance(new, np.ndarray):
                ring[:, int(rows[0]), :, int(ring_index[0])] = new[:, 0, :, 0]
            else:
                for layer, fresh in zip(ring, new, strict=True):
                    layer[rows, :, ring_index] = fresh[:, :, 0]

    def _bound(self, at: slice, tokens: Mapping[str, NDArray[Any]]) -> _Binding:
        """Return the binding of some consecutive slots of the cache."""
        cache = self.cache
        if cache is not self._bound_cache:
            self._bindings, self._bound_cache = {}, cache
        binding = self._bindings.get((at.start, at.stop))
        if binding is None:
            if len(self._bindings) == _MAX_BINDINGS:
                del self._bindings[next(iter(self._bindings))]
            inputs: dict[str, Any] = {name: np.zeros(value.shape, _dtype(name)) for name, value in tokens.items()}
            inputs |= {"clock": cache.clock[at], "length": cache.length[at]}
            rings = zip(self._rings, (*cache.keys, *cache.values), strict=True)
            inputs |= {name: ring[at] for name, ring in rings}
            binding = _Binding(self.model.session, inputs, self._outputs, len(inputs["clock"]))
            self._bindings[at.start, at.stop] = binding
        return binding

    def rebuild(self, rows: Rows, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> None:
        """Fill slots from the last tokens of their agents, one token after the other."""
        cache, _ = self._replay(obs, previous, is_first, pixels)
        self.cache.keys[:, rows], self.cache.values[:, rows] = cache.keys, cache.values
        self.cache.clock[rows], self.cache.length[rows] = cache.clock, cache.length

    def short(self, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None) -> Float32:
        """Return the outputs for the last token of short sequences, one token after the other."""
        return self._replay(obs, previous, is_first, pixels)[1]

    def _replay(
        self, obs: Float32, previous: Float32, is_first: Bools, pixels: UInt8 | None
    ) -> tuple[ArrayCache, Float32]:
        count, length = is_first.shape
        cache = ArrayCache(self.model.config, count)
        rows, everyone = np.arange(count), slice(0, count)
        # In front there may be padding, whose tokens all begin an episode.
        begun = np.flatnonzero(~is_first.all(axis=0))
        begin = max(int(begun[0]) - 1, 0) if len(begun) else length - 1
        cache.clock[:] = begin % self._period
        params = np.zeros((count, 0), np.float32)
        for t in range(begin, length):
            images = None if pixels is None else pixels[:, t]
            params = self._run(cache, obs[:, t], previous[:, t], is_first[:, t], rows, everyone, images)
        return cache, params
