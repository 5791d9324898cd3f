"""The ONNX graph of a BERT sentence encoder, made from its weights: no exporter, no ONNX library.

Linear layers are quantised to 8 bits, weights once for each output channel and activations as they
come; a single scale for a whole weight matrix would ruin the cosines. The words' embeddings are 8 bits
too, with a scale for each word. Mean over the pieces and division by the length are part of the graph,
so what comes out is a unit vector a text.

ONNX is protobuf, and the few messages that are needed are written here by hand: field numbers are those
of onnx.proto3 (IR version 8).
"""

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from breakwater_gateway.cache.embed.weights import Array, Weights

OPSET: Final = 17
"""The first with LayerNormalization; supported since onnxruntime 1.12."""
_FLOAT, _UINT8, _INT8, _INT64 = 1, 2, 3, 7
_TYPES: Final = {"float32": _FLOAT, "uint8": _UINT8, "int8": _INT8, "int64": _INT64}

Attribute = int | float | Sequence[int]


def build(weights: Weights) -> bytes:
    """A serialised ModelProto: `ids` and `mask` (int64, texts by pieces) to `vectors` (float32)."""
    return _Graph(weights).model()


def quantise(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """Columns of `weight` to 8 bits: `quantised * scale` is nearest to what was given."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-12) / np.float32(127.0)
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)


class _Graph:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._shape = weights.shape
        self._nodes: list[bytes] = []
        self._tensors: list[bytes] = []
        self._made = 0
        self._masked = ""

    def model(self) -> bytes:
        hidden = self._embed()
        for layer in range(self._shape.num_hidden_layers):
            hidden = self._layer(hidden, f"encoder.layer.{layer}.")
        self._pool(hidden)
        graph = b"".join(
            (
                *(_field(1, node) for node in self._nodes),
                _text(2, "minilm"),
                *(_field(5, tensor) for tensor in self._tensors),
                _field(11, _value("ids", _INT64, ("texts", "pieces"))),
                _field(11, _value("mask", _INT64, ("texts", "pieces"))),
                _field(12, _value("vectors", _FLOAT, ("texts", self._shape.hidden_size))),
            )
        )
        opset = _field(8, _number(2, OPSET))
        return _number(1, 8) + _text(2, "breakwater") + _field(7, graph) + opset

    def _embed(self) -> str:
        w, prefix = self._weights, "embeddings."
        words, scale = quantise(np.ascontiguousarray(w[f"{prefix}word_embeddings.weight"].T))
        rows = self._node("Gather", self._tensor(np.ascontiguousarray(words.T)), "ids")
        scales = self._node("Gather", self._tensor(scale[:, None]), "ids")
        found = self._node("Mul", self._node("Cast", rows, to=_FLOAT), scales)
        # Every piece has the same type, so its embedding belongs to the positions.
        positions = w[f"{prefix}position_embeddings.weight"]
        positions = positions + w[f"{prefix}token_type_embeddings.weight"][0]
        pieces = self._node("Slice", self._node("Shape", "ids"), *map(self._ints, ([1], [2])))
        at = self._node(
            "Slice", self._tensor(positions.astype(np.float32)), self._ints([0]), pieces
        )
        return self._norm(self._node("Add", found, at), f"{prefix}LayerNorm.")

    def _layer(self, hidden: str, prefix: str) -> str:
        shape, attention = self._shape, f"{prefix}attention."
        heads, width = shape.num_attention_heads, shape.hidden_size // shape.num_attention_heads
        # One multiplication for all three; the scores' 1/sqrt(width) goes into the queries.
        names = ("query", "key", "value")
        scale = np.float32(width**-0.5)
        factors = (scale, np.float32(1), np.float32(1))
        weight = np.concatenate(
            [
                self._weights[f"{attention}self.{n}.weight"] * f
                for n, f in zip(names, factors, strict=True)
            ]
        )
        bias = np.concatenate(
            [
                self._weights[f"{attention}self.{n}.bias"] * f
                for n, f in zip(names, factors, strict=True)
            ]
        )
        qkv = self._linear(hidden, weight, bias)
        split = self._node("Reshape", qkv, self._ints([0, 0, 3, heads, width]))
        turned = self._node("Transpose", split, perm=(2, 0, 3, 1, 4))
        query, key, value = (
            self._node("Gather", turned, self._tensor(np.array(i, np.int64)), axis=0)
            for i in range(3)
        )
        scores = self._node("MatMul", query, self._node("Transpose", key, perm=(0, 1, 3, 2)))
        shares = self._node("Softmax", self._node("Add", scores, self._mask()), axis=-1)
        mixed = self._node("Transpose", self._node("MatMul", shares, value), perm=(0, 2, 1, 3))
        flat = self._node("Reshape", mixed, self._ints([0, 0, shape.hidden_size]))
        attended = self._dense(flat, f"{attention}output.dense.")
        hidden = self._norm(self._node("Add", attended, hidden), f"{attention}output.LayerNorm.")
        inner = self._gelu(self._dense(hidden, f"{prefix}intermediate.dense."))
        outer = self._dense(inner, f"{prefix}output.dense.")
        return self._norm(self._node("Add", outer, hidden), f"{prefix}output.LayerNorm.")

    def _pool(self, hidden: str) -> None:
        mask = self._node("Unsqueeze", self._node("Cast", "mask", to=_FLOAT), self._ints([2]))
        total = self._node(
            "ReduceSum", self._node("Mul", hidden, mask), self._ints([1]), keepdims=0
        )
        # The mean's denominator cancels when the length is divided out.
        squares = self._node(
            "ReduceSum", self._node("Mul", total, total), self._ints([1]), keepdims=1
        )
        length = self._node("Sqrt", self._node("Max", squares, self._floats([1e-24])))
        self._node("Div", total, length, output="vectors")

    def _mask(self) -> str:
        """0 where there is a piece, far below 0 where there is none; the same for all layers."""
        if not self._masked:
            one = self._floats([1])
            absent = self._node("Sub", one, self._node("Cast", "mask", to=_FLOAT))
            low = self._node("Mul", absent, self._floats([-1e9]))
            self._masked = self._node("Unsqueeze", low, self._ints([1, 2]))
        return self._masked

    def _dense(self, x: str, prefix: str) -> str:
        return self._linear(x, self._weights[f"{prefix}weight"], self._weights[f"{prefix}bias"])

    def _linear(self, x: str, weight: Array, bias: Array) -> str:
        quantised, scale = quantise(np.ascontiguousarray(weight.T))
        small, x_scale, x_zero = self._nodes_of("DynamicQuantizeLinear", 3, x)
        product = self._node(
            *("MatMulInteger", small, self._tensor(quantised), x_zero),
            self._tensor(np.zeros(len(scale), np.int8)),
        )
        scales = self._node("Mul", x_scale, self._tensor(scale))
        found = self._node("Mul", self._node("Cast", product, to=_FLOAT), scales)
        return self._node("Add", found, self._tensor(bias))

    def _gelu(self, x: str) -> str:
        inner = self._node("Div", x, self._floats([2**0.5]))
        grown = self._node("Add", self._node("Erf", inner), self._floats([1]))
        return self._node("Mul", self._node("Mul", x, grown), self._floats([0.5]))

    def _norm(self, x: str, prefix: str) -> str:
        weight, bias = (self._tensor(self._weights[f"{prefix}{n}"]) for n in ("weight", "bias"))
        return self._node(
            "LayerNormalization", x, weight, bias, axis=-1, epsilon=self._shape.layer_norm_eps
        )

    def _node(self, kind: str, *inputs: str, output: str = "", **attributes: Attribute) -> str:
        (found,) = self._nodes_of(kind, 1, *inputs, output=output, **attributes)
        return found

    def _nodes_of(
        self, kind: str, outputs: int, *inputs: str, output: str = "", **attributes: Attribute
    ) -> list[str]:
        names = [output or self._name() for _ in range(outputs)]
        parts = [_text(1, each) for each in inputs] + [_text(2, each) for each in names]
        parts += [_text(3, names[0]), _text(4, kind)]
        parts += [_field(5, _attribute(name, value)) for name, value in attributes.items()]
        self._nodes.append(b"".join(parts))
        return names

    def _tensor(self, value: NDArray[np.generic]) -> str:
        name = self._name()
        dims = b"".join(_number(1, size) for size in value.shape)
        kind = _number(2, _TYPES[value.dtype.name])
        raw = _field(9, np.ascontiguousarray(value).tobytes())
        self._tensors.append(dims + kind + _text(8, name) + raw)
        return name

    def _ints(self, values: Sequence[int]) -> str:
        return self._tensor(np.array(values, np.int64))

    def _floats(self, values: Sequence[float]) -> str:
        return self._tensor(np.array(values, np.float32))

    def _name(self) -> str:
        self._made += 1
        return f"v{self._made}"


# --- protobuf -----------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _field(field, value.encode())


def _attribute(name: str, value: Attribute) -> bytes:
    # AttributeProto: 1 name, 2 f, 3 i, 8 ints, 20 type (1 FLOAT, 2 INT, 7 INTS).
    if isinstance(value, float):
        return _text(1, name) + b"\x15" + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, 2)
    return _text(1, name) + b"".join(_number(8, each) for each in value) + _number(20, 7)


def _value(name: str, kind: int, dims: Sequence[int | str]) -> bytes:
    sizes = b"".join(
        _field(1, _text(2, dim) if isinstance(dim, str) else _number(1, dim)) for dim in dims
    )
    tensor = _number(1, kind) + _field(2, sizes)
    return _text(1, name) + _field(2, _field(1, tensor))
