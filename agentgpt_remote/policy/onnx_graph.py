"""The model's step as an ONNX graph, from the weights of a bundle and without torch.

One step is :meth:`~agentgpt_remote.policy.model.PolicyModel.act_step`, with the KV cache as inputs and outputs. Tensors
are described in docs/export.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

from agentgpt_remote.policy.config import GPTConfig, rope_period
from agentgpt_remote.policy.features import ActionFeatures, ObservationFeatures
from agentgpt_remote.policy.images import ImageLeaf
from agentgpt_remote.policy.onnx_file import GraphWriter

Weights = Mapping[str, NDArray[Any]]
OBSERVATION_CLIP = 10.0
_EPS = float(np.finfo(np.float32).eps)  # of torch's RMSNorm
_LAYER_EPS = 1e-5
_HIDDEN = -1e9
_AGENTS = "agents"


def cache_names(layer: int, kind: str) -> tuple[str, str, str]:
    """Return how a layer's keys or values are called: before the step, after it, and what of them is new."""
    return f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}", f"new.{layer}.{kind}"


class StepGraph:
    """Builds the graph of one step.

    Args:
        observation_space: of one agent.
        action_space: of one agent.
        config: sizes of the model.
        weights: of the bundle, float arrays by name.
    """

    def __init__(
        self, observation_space: Space[Any], action_space: Space[Any], config: GPTConfig, weights: Weights
    ) -> None:
        self.config = config
        self._observations = ObservationFeatures(observation_space, images=config.image_encoder == "cnn")
        self._actions = ActionFeatures(action_space)
        self._weights = weights
        self._graph = GraphWriter("agentgpt_step")
        self._llama = config.gpt_type == "llama"
        self.num_params = len(weights["head.bias"])

    def build(self, metadata: Mapping[str, str], *, whole: bool) -> bytes:
        """Return the file's bytes.

        Args:
            metadata: texts to keep in the file.
            whole: with the greedy action and the whole cache as outputs; else only the outputs of the model and what
                is new in the cache.
        """
        g, config = self._graph, self.config
        obs = g.input("observation", np.float32, (_AGENTS, self._observations.width))
        previous = g.input("previous_action", np.float32, (_AGENTS, self._actions.width))
        first = g.input("is_first", np.int64, (_AGENTS,))
        pixels = None
        if self._observations.pixel_width:
            pixels = g.input("pixels", np.uint8, (_AGENTS, self._observations.pixel_width))
        clock, length = g.input("clock", np.int64, (_AGENTS,)), g.input("length", np.int64, (_AGENTS,))
        self._positions(clock, length, first)
        x = self._embedded(obs, previous, first, pixels)
        fresh = []
        for layer in range(config.num_layers):
            x, key, value = self._block(x, layer)
            fresh.append({"key": key, "value": value})
        params = self._linear(self._norm(x), "head", bias=True)
        g.output(params, "parameters", np.float32, (_AGENTS, self.num_params))
        if whole:
            g.output(self._greedy(params), "action", np.float32, (_AGENTS, self._actions.width))
            g.output(self._next_clock, "next_clock", np.int64, (_AGENTS,))
            g.output(self._next_length, "next_length", np.int64, (_AGENTS,))
        self._cache_outputs(fresh, whole)
        return g.model(metadata)

    def _int(self, *values: int) -> str:
        return self._graph.constant(np.asarray(values, np.int64))

    def _cache_outputs(self, fresh: list[dict[str, str]], whole: bool) -> None:
        g, config = self._graph, self.config
        heads, window, size = config.num_heads, config.max_input_states, config.head_size
        for layer, parts in enumerate(fresh):
            for kind, value in parts.items():
                past, present, new = cache_names(layer, kind)
                if whole:
                    written = g.op("Where", self._here, value, past)
                    g.output(written, present, np.float32, (_AGENTS, heads, window, size))
                else:
                    g.output(value, new, np.float32, (_AGENTS, heads, 1, size))

    def _positions(self, clock: str, length: str, first: str) -> None:
        """Compute what all layers share: rotations, the mask of the ring, and where the token is written."""
        g, window, period = self._graph, self.config.max_input_states, rope_period(self.config.max_input_states)
        one, size, turn = self._int(1), self._int(window), self._int(period)
        kept = g.op("Mul", length, g.op("Sub", one, first))
        self._next_length = g.op("Min", g.op("Add", kept, one), size)
        self._next_clock = g.op("Mod", g.op("Add", clock, one), turn)
        index = g.op("Unsqueeze", g.op("Mod", clock, size), one)  # (n, 1)
        # How many tokens ago each index was written; the token's own is read from nowhere.
        age = g.op("Mod", g.op("Add", g.op("Sub", index, self._int(*range(window))), size), size)  # (n, W)
        floats = g.op("Cast", age, to=1)
        kept_floats = g.op("Unsqueeze", g.op("Cast", kept, to=1), one)
        # 1 where 1 <= age <= kept, else 0, of whole numbers.
        seen = g.op("Min", floats, g.op("Sub", g.op("Add", kept_floats, self._f(1.0)), floats))
        seen = g.op("Min", g.op("Max", seen, self._f(0.0)), self._f(1.0))
        hidden = g.op("Mul", g.op("Sub", self._f(1.0), seen), self._f(_HIDDEN))
        shape = self._int(-1, 1, 1, window)
        self._mask = g.op("Reshape", hidden, shape)
        self._age = age
        self._here = g.op("Reshape", g.op("Equal", age, self._int(0)), self._int(-1, 1, window, 1))
        if self._llama:
            cos, sin = rope_tables(self.config)
            rope_shape = self._int(-1, 1, 1, 2, self.config.head_size // 2)
            self._cos = g.op("Reshape", g.op("Gather", g.constant(cos), clock, axis=0), rope_shape)
            self._sin = g.op("Reshape", g.op("Gather", g.constant(sin), clock, axis=0), rope_shape)

    def _f(self, value: float) -> str:
        return self._graph.constant(np.asarray(value, np.float32))

    def _columns(self, x: str, start: int, stop: int) -> str:
        return self._graph.op("Slice", x, self._int(start), self._int(stop), self._int(1))

    def _embedded(self, obs: str, previous: str, first: str, pixels: str | None) -> str:
        """Return embedded tokens, (n, d)."""
        g, seen, acted = self._graph, self._observations, self._actions
        is_first = g.op("Unsqueeze", g.op("Cast", first, to=1), self._int(1))  # (n, 1)
        going_on = g.op("Sub", self._f(1.0), is_first)
        floats = []
        if seen.numeric_width:
            centred = g.op("Sub", self._columns(obs, 0, seen.numeric_width), self._weight("encoder.obs_mean"))
            scaled = g.op("Mul", centred, self._weight("encoder.obs_scale"))
            floats.append(g.op("Clip", scaled, self._f(-OBSERVATION_CLIP), self._f(OBSERVATION_CLIP)))
        seen_floats = seen.numeric_width + seen.binary_width
        if seen.binary_width:
            floats.append(self._columns(obs, seen.numeric_width, seen_floats))
        if acted.numeric_width:
            bound = np.where(acted.bounded, 1.0, OBSERVATION_CLIP).astype(np.float32)
            numeric = self._columns(previous, 0, acted.numeric_width)
            clipped = g.op("Min", g.op("Max", numeric, g.constant(-bound)), g.constant(bound))
            floats.append(g.op("Mul", clipped, going_on))
        acted_floats = acted.numeric_width + acted.binary_width
        if acted.binary_width:
            floats.append(g.op("Mul", self._columns(previous, acted.numeric_width, acted_floats), going_on))
        x = self._categories(obs, previous, is_first, going_on, seen_floats, acted_floats)
        if floats:
            joined = floats[0] if len(floats) == 1 else g.op("Concat", *floats, axis=1)
            x = g.op("Add", x, self._linear(joined, "encoder.numeric"))
        if pixels is not None:
            for number, leaf in enumerate(seen.images):
                x = g.op("Add", x, self._image(pixels, number, leaf))
        return x

    def _categories(
        self, obs: str, previous: str, is_first: str, going_on: str, seen_floats: int, acted_floats: int
    ) -> str:
        """Return the sum of the embeddings of all categorical columns, (n, d)."""
        g, seen, acted = self._graph, self._observations, self._actions
        columns = []
        if seen.category_sizes:
            columns.append(self._columns(obs, seen_floats, seen.width))
        if acted.category_sizes:
            none = g.constant(np.asarray(acted.category_sizes, np.float32))
            taken = g.op("Mul", self._columns(previous, acted_floats, acted.width), going_on)
            columns.append(g.op("Add", taken, g.op("Mul", none, is_first)))
        columns.append(is_first)
        joined = columns[0] if len(columns) == 1 else g.op("Concat", *columns, axis=1)
        sizes = [*seen.category_sizes, *(n + 1 for n in acted.category_sizes)]
        offsets = np.cumsum([0, *sizes]).astype(np.int64)
        rows = g.op("Add", g.op("Cast", joined, to=7), g.constant(offsets))
        embedded = g.op("Gather", self._weight("encoder.table"), rows, axis=0)  # (n, columns, d)
        return g.op("ReduceSum", embedded, self._int(1), keepdims=0)

    def _image(self, pixels: str, number: int, leaf: ImageLeaf) -> str:
        """Return one image's part of the tokens, (n, d)."""
        g, prefix = self._graph, f"encoder.images.{number}"
        x = g.op("Cast", self._columns(pixels, leaf.columns.start, leaf.columns.stop), to=1)
        x = g.op("Div", x, self._f(255.0))
        if leaf.channels_last:
            x = g.op("Reshape", x, self._int(-1, leaf.height, leaf.width, leaf.channels))
            x = g.op("Transpose", x, perm=(0, 3, 1, 2))
        else:
            x = g.op("Reshape", x, self._int(-1, leaf.channels, leaf.height, leaf.width))
        strides = leaf.convolution_strides()
        for layer, stride in enumerate(strides):
            name = f"{prefix}.layers.{2 * layer}"
            kernel = self._weights[f"{name}.weight"].shape[-1]
            padding = 2 if kernel == 8 else 1
            x = g.op(
                "Conv",
                x,
                self._weight(f"{name}.weight"),
                self._weight(f"{name}.bias"),
                kernel_shape=(kernel, kernel),
                strides=stride,
                pads=(padding,) * 4,
            )
            x = g.op("Relu", x)
        x = self._linear(g.op("Flatten", x, axis=1), f"{prefix}.layers.{2 * len(strides) + 1}", bias=True)
        return self._layer_norm(x, self._weights[f"{prefix}.norm.weight"], self._weights[f"{prefix}.norm.bias"])

    def _weight(self, name: str) -> str:
        return self._graph.constant(self._weights[name])

    def _linear(self, x: str, name: str, *, bias: bool = False, gain: NDArray[Any] | None = None) -> str:
        """Return a linear map of x, its outputs multiplied by ``gain``."""
        g, matrix = self._graph, np.asarray(self._weights[f"{name}.weight"], np.float32).T
        if gain is not None:
            matrix = matrix * gain
        result = g.op("MatMul", x, g.constant(np.ascontiguousarray(matrix)))
        if not bias:
            return result
        vector = np.asarray(self._weights[f"{name}.bias"], np.float32)
        return g.op("Add", result, g.constant(vector if gain is None else vector * gain))

    def _norm(self, x: str) -> str:
        width = self.config.d_model
        if not self._llama:
            return self._layer_norm(x, np.ones(width, np.float32), np.zeros(width, np.float32))
        # Runtimes know this sequence, with its gain, as one operation.
        g = self._graph
        square = g.op("ReduceMean", g.op("Pow", x, self._f(2.0)), axes=(-1,), keepdims=1)
        scaled = g.op("Div", x, g.op("Sqrt", g.op("Add", square, self._f(_EPS))))
        return g.op("Mul", scaled, g.constant(np.ones(width, np.float32)))

    def _layer_norm(self, x: str, gain: NDArray[Any], bias: NDArray[Any]) -> str:
        g = self._graph
        centred = g.op("Sub", x, g.op("ReduceMean", x, axes=(-1,), keepdims=1))
        square = g.op("ReduceMean", g.op("Pow", centred, self._f(2.0)), axes=(-1,), keepdims=1)
        scaled = g.op("Div", centred, g.op("Sqrt", g.op("Add", square, self._f(_LAYER_EPS))))
        return g.op("Add", g.op("Mul", scaled, g.constant(gain)), g.constant(bias))

    def _block(self, x: str, layer: int) -> tuple[str, str, str]:
        """Return x after a block, and the token's key and value, each (n, heads, 1, head_size)."""
        g, config, prefix = self._graph, self.config, f"trunk.blocks.{layer}"
        heads, size, width = config.num_heads, config.head_size, config.d_model
        bias = not self._llama
        # Queries carry the scale of attention.
        gain = np.ones(3 * width, np.float32)
        gain[:width] = 1.0 / math.sqrt(size)
        qkv = self._linear(self._norm(x), f"{prefix}.qkv", bias=bias, gain=gain)
        qk, value = g.ops("Split", 2, qkv, self._int(2 * width, width), axis=1)
        if self._llama:
            qk = g.op("Reshape", qk, self._int(0, 2, heads, 2, size // 2))
            turned = g.op("Mul", g.op("Gather", qk, self._int(1, 0), axis=3), self._sin)
            qk = g.op("Reshape", g.op("Add", g.op("Mul", qk, self._cos), turned), self._int(0, 2 * width))
        query, key = g.ops("Split", 2, qk, self._int(width, width), axis=1)
        shape = self._int(0, heads, 1, size)
        query, key, value = (g.op("Reshape", part, shape) for part in (query, key, value))
        attended = g.op("Reshape", self._attention(query, key, value, layer), self._int(0, width))
        x = g.op("Add", x, self._linear(attended, f"{prefix}.project", bias=bias))
        return self._mlp(x, prefix), key, value

    def _attention(self, query: str, key: str, value: str, layer: int) -> str:
        """Return attention to the ring and to the token itself, (n, heads, 1, head_size)."""
        g, config, window = self._graph, self.config, self.config.max_input_states
        shape = (_AGENTS, config.num_heads, window, config.head_size)
        keys = g.input(cache_names(layer, "key")[0], np.float32, shape)
        values = g.input(cache_names(layer, "value")[0], np.float32, shape)
        scores = g.op("MatMul", query, g.op("Transpose", keys, perm=(0, 1, 3, 2)))  # (n, nh, 1, W)
        own = g.op("ReduceSum", g.op("Mul", query, key), self._int(-1), keepdims=1)  # (n, nh, 1, 1)
        mask = self._mask
        if not self._llama:
            table = np.asarray(self._weights[f"trunk.blocks.{layer}.position"], np.float32)  # (nh, W)
            by_age = g.op("Gather", g.constant(np.ascontiguousarray(table.T)), self._age, axis=0)  # (n, W, nh)
            by_age = g.op("Unsqueeze", g.op("Transpose", by_age, perm=(0, 2, 1)), self._int(2))
            mask = g.op("Add", mask, by_age)
            own = g.op("Add", own, g.constant(table[None, :, :1, None]))
        weights = g.op("Softmax", g.op("Concat", g.op("Add", scores, mask), own, axis=3), axis=-1)
        past, now = g.ops("Split", 2, weights, self._int(window, 1), axis=3)
        return g.op("Add", g.op("MatMul", past, values), g.op("Mul", now, value))

    def _mlp(self, x: str, prefix: str) -> str:
        g, hidden = self._graph, self.config.hidden_size
        if self._llama:
            wide = self._linear(self._norm(x), f"{prefix}.gate_up")
            gate, up = g.ops("Split", 2, wide, self._int(hidden, hidden), axis=1)
            inner = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
            return g.op("Add", x, self._linear(inner, f"{prefix}.down"))
        wide = self._linear(self._norm(x), f"{prefix}.gate_up", bias=True)
        # GELU by the error function (Hendrycks and Gimpel 2016).
        error = g.op("Add", g.op("Erf", g.op("Div", wide, self._f(math.sqrt(2.0)))), self._f(1.0))
        inner = g.op("Mul", g.op("Mul", wide, error), self._f(0.5))
        return g.op("Add", x, self._linear(inner, f"{prefix}.down", bias=True))

    def _greedy(self, params: str) -> str:
        """Return the likeliest compact actions, (n, action width)."""
        g, acted = self._graph, self._actions
        parts, start = [], acted.numeric_width
        if start:
            mean = self._columns(params, 0, start)
            if self.config.squashed:
                bounded = g.constant(acted.bounded.astype(np.float32))
                squashed = g.op("Sub", g.op("Tanh", mean), mean)
                mean = g.op("Add", mean, g.op("Mul", squashed, bounded))
            parts.append(mean)
        if acted.binary_width:
            logits = self._columns(params, start, start + acted.binary_width)
            parts.append(g.op("Cast", g.op("Greater", logits, self._f(0.0)), to=1))
            start += acted.binary_width
        for size in acted.category_sizes:
            likeliest = g.op("ArgMax", self._columns(params, start, start + size), axis=1, keepdims=1)
            parts.append(g.op("Cast", likeliest, to=1))
            start += size
        return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)


def rope_tables(config: GPTConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and signed sines of every position, float32 arrays of shape (period, head_size).

    The same as :func:`agentgpt_remote.policy.trunk.rope_table`.
    """
    window, half = config.max_input_states, config.head_size // 2
    period = rope_period(window)
    wanted = (4.0 * window) ** (-np.arange(half) / max(half - 1, 1))
    turns = np.maximum(np.rint(wanted * period / (2 * math.pi)), 1.0)
    angle = np.remainder(np.arange(period)[:, None] * turns, period) * (2 * math.pi / period)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    return np.concatenate((cos, cos), axis=1), np.concatenate((-sin, sin), axis=1)
