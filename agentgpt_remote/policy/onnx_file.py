"""ONNX files, written without the onnx package: the few messages of onnx.proto3 that a graph needs.

The package asks for a protobuf that simulators (ML-Agents) can't be installed beside; the format is small and fixed.
Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPSET = 15  # the newest that Unity's Sentis reads
IR_VERSION = 8
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int64): 7}
_FLOAT, _INT, _INTS = 1, 2, 7  # AttributeProto.AttributeType

Dim = int | str


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, data: bytes | str) -> bytes:
    data = data.encode() if isinstance(data, str) else data
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    head = _bytes(1, name)
    if isinstance(value, float):
        return head + _varint(2 << 3 | 5) + np.float32(value).tobytes() + _number(20, _FLOAT)
    if isinstance(value, int):
        return head + _number(3, value) + _number(20, _INT)
    return head + b"".join(_number(8, item) for item in value) + _number(20, _INTS)


def _tensor(name: str, array: NDArray[Any]) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return dims + _number(2, _TYPES[array.dtype]) + _bytes(8, name) + _bytes(9, raw)


def _value_info(name: str, dtype: Any, shape: Sequence[Dim]) -> bytes:
    dims = b"".join(_bytes(1, _bytes(2, dim) if isinstance(dim, str) else _number(1, dim)) for dim in shape)
    tensor_type = _number(1, _TYPES[np.dtype(dtype)]) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor_type))


class GraphWriter:
    r"""Builds one graph, node after node.

    Example:
        >>> graph = GraphWriter("double")
        >>> x = graph.input("x", np.float32, ("n", 2))
        >>> graph.output(graph.op("Add", x, x), "y", np.float32, ("n", 2))
        >>> graph.model({})[:2]
        b'\x08\x08'
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[bytes] = []
        self._constants: list[bytes] = []
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def input(self, name: str, dtype: Any, shape: Sequence[Dim]) -> str:
        """Declare an input; a text in its shape is the name of an axis of any length."""
        self._inputs.append(_value_info(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: Any, shape: Sequence[Dim]) -> None:
        """Declare a value as an output of this name."""
        self._nodes.append(_bytes(1, value) + _bytes(2, name) + _bytes(3, f"to_{name}") + _bytes(4, "Identity"))
        self._outputs.append(_value_info(name, dtype, shape))

    def constant(self, array: Any) -> str:
        """Return the name of a constant; equal ones are kept once."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(np.float32, copy=False)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self._fresh("constant")
            self._constants.append(_tensor(self._shared[key], array))
        return self._shared[key]

    def op(self, kind: str, *inputs: str, **attributes: float | int | Sequence[int]) -> str:
        """Add a node of one output and return its name."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: float | int | Sequence[int]) -> list[str]:
        """Add a node and return the names of its outputs."""
        names = [self._fresh(kind) for _ in range(outputs)]
        node = b"".join(_bytes(1, name) for name in inputs) + b"".join(_bytes(2, name) for name in names)
        node += _bytes(3, f"node_{names[0]}") + _bytes(4, kind)
        node += b"".join(_bytes(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(node)
        return names

    def model(self, metadata: Mapping[str, str], producer: str = "agentgpt-remote", version: str = "") -> bytes:
        """Return the file's bytes."""
        graph = b"".join(_bytes(1, node) for node in self._nodes) + _bytes(2, self._name)
        graph += b"".join(_bytes(5, constant) for constant in self._constants)
        graph += b"".join(_bytes(11, value) for value in self._inputs)
        graph += b"".join(_bytes(12, value) for value in self._outputs)
        model = _number(1, IR_VERSION) + _bytes(2, producer) + _bytes(3, version) + _bytes(7, graph)
        model += _bytes(8, _bytes(1, "") + _number(2, OPSET))
        return model + b"".join(_bytes(14, _bytes(1, key) + _bytes(2, value)) for key, value in metadata.items())
