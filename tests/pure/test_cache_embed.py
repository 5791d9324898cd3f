"""The local embedder: tokens as BERT's, and an ONNX graph that computes what the weights mean.

A tiny BERT with weights of chance stands for MiniLM: the graph is made from the same code. What the real
one measures is printed by `python -m ops.bench.semantic`.
"""

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from breakwater_gateway.cache.embed import onnx_graph
from breakwater_gateway.cache.embed.weights import (
    NoWeights,
    Weights,
    find_folder,
    read_tokenizer,
    read_weights,
)
from breakwater_gateway.cache.embed.wordpiece import WordPiece, words

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##able",
    "##aff",
    "cafe",
    "!",
    "want",
    "##ed",
    "中",
]
HIDDEN, HEADS, INNER = 32, 4, 64


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Hello, World!", ["hello", ",", "world", "!"]),
        ("Café crème", ["cafe", "creme"]),
        ("a\tb\nc\u00a0d", ["a", "b", "c", "d"]),
        ("zero\u200bwidth", ["zerowidth"]),
        ("don't", ["don", "'", "t"]),
        ("中国 ok", ["中", "国", "ok"]),
        ("", []),
        ("“quoted”—text…", ["“", "quoted", "”", "—", "text", "…"]),
    ],
)
def test_words_are_split_as_bert_splits_them(text: str, split: list[str]) -> None:
    assert words(text) == split


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [2, 3]),
        ("Unaffable!", [2, 4, 6, 5, 8, 3]),
        ("wanted CAFÉ", [2, 9, 10, 7, 3]),
        ("nobody", [2, 1, 3]),
        ("w" * 101, [2, 1, 3]),
        ("中", [2, 11, 3]),
    ],
)
def test_words_become_their_longest_pieces(text: str, ids: list[int]) -> None:
    assert WordPiece(PIECES).encode(text) == ids


def test_a_vocabulary_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \[UNK\]"):
        WordPiece(["a", "b"])


def tiny(folder: Path, **config: Any) -> Path:  # noqa: ANN401
    rng = np.random.default_rng(5)
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, *shape: int, scale: float = 0.2, base: float = 0.0) -> None:
        tensors[name] = (base + scale * rng.standard_normal(shape)).astype(np.float32)

    put("embeddings.word_embeddings.weight", len(PIECES), HIDDEN, scale=1.0)
    put("embeddings.position_embeddings.weight", 16, HIDDEN)
    put("embeddings.token_type_embeddings.weight", 2, HIDDEN)
    put("embeddings.LayerNorm.weight", HIDDEN, base=1.0)
    put("embeddings.LayerNorm.bias", HIDDEN)
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            put(f"{at}attention.self.{part}.weight", HIDDEN, HIDDEN)
            put(f"{at}attention.self.{part}.bias", HIDDEN)
        put(f"{at}attention.output.dense.weight", HIDDEN, HIDDEN)
        put(f"{at}attention.output.dense.bias", HIDDEN)
        put(f"{at}attention.output.LayerNorm.weight", HIDDEN, base=1.0)
        put(f"{at}attention.output.LayerNorm.bias", HIDDEN)
        put(f"{at}intermediate.dense.weight", INNER, HIDDEN)
        put(f"{at}intermediate.dense.bias", INNER)
        put(f"{at}output.dense.weight", HIDDEN, INNER)
        put(f"{at}output.dense.bias", HIDDEN)
        put(f"{at}output.LayerNorm.weight", HIDDEN, base=1.0)
        put(f"{at}output.LayerNorm.bias", HIDDEN)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        raw = tensor.tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    said = json.dumps(header).encode()
    said += b" " * (-len(said) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + body)
    shape = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "layer_norm_eps": 1e-12,
        "vocab_size": len(PIECES),
        "max_position_embeddings": 16,
        "model_type": "bert",
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(shape | config))
    (folder / "vocab.txt").write_text("\n".join(PIECES), encoding="utf-8")
    return folder


def forward(weights: Weights, ids: list[int]) -> np.ndarray:
    """What the weights mean, in double precision and without any trick."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.tensors.items()}

    def norm(x: np.ndarray, at: str) -> np.ndarray:
        mean, spread = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        found: np.ndarray = (x - mean) / np.sqrt(spread + 1e-12) * w[f"{at}weight"] + w[f"{at}bias"]
        return found

    def dense(x: np.ndarray, at: str) -> np.ndarray:
        found: np.ndarray = x @ w[f"{at}weight"].T + w[f"{at}bias"]
        return found

    erf = np.vectorize(math.erf)
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm.")
    for layer in range(2):
        at = f"encoder.layer.{layer}."
        q, k, v = (
            dense(x, f"{at}attention.self.{n}.").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for n in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(HIDDEN / HEADS))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        x = norm(
            dense(mixed, f"{at}attention.output.dense.") + x, f"{at}attention.output.LayerNorm."
        )
        inner = dense(x, f"{at}intermediate.dense.")
        inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
        x = norm(dense(inner, f"{at}output.dense.") + x, f"{at}output.LayerNorm.")
    mean = x.mean(0)
    found: np.ndarray = mean / np.linalg.norm(mean)
    return found


def test_the_graph_computes_what_the_weights_mean(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `semantic` is not installed")
    weights = read_weights(tiny(tmp_path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_graph.build(weights), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = read_tokenizer(tmp_path)
    for text in ("unaffable", "wanted cafe !", "中 want un!"):
        ids = tokenizer.encode(text)
        pieces = np.array([ids], np.int64)
        (found,) = session.run(None, {"ids": pieces, "mask": np.ones_like(pieces)})
        assert float(found[0] @ forward(weights, ids)) > 0.995, text
        padded = np.array([[*ids, 0, 0]], np.int64)
        mask = np.array([[1] * len(ids) + [0, 0]], np.int64)
        (again,) = session.run(None, {"ids": padded, "mask": mask})
        assert float(found[0] @ again[0]) > 0.995, "padding is not seen"


def test_columns_keep_their_own_scale() -> None:
    weight = np.array([[100.0, 0.01], [-50.0, 0.0051]], np.float32)
    small, scale = onnx_graph.quantise(weight)
    assert np.abs(small * scale - weight).max(axis=0).tolist() == pytest.approx([0.0, 0.0], abs=0.4)
    assert small[:, 1].tolist() == [127, 65]


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda f: (f / "vocab.txt").unlink(), "lacks vocab.txt"),
        (lambda f: (f / "config.json").write_text("{}"), "cannot be read as a MiniLM"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 16), "cannot be read"),
        (lambda f: tiny(f, hidden_act="relu"), "not a BERT with gelu"),
        (lambda f: tiny(f, num_hidden_layers=3), "do not belong together"),
    ],
)
def test_a_folder_without_a_minilm_is_refused_in_one_sentence(
    tmp_path: Path,
    break_it: Callable[[Path], object],
    why: str,
) -> None:
    tiny(tmp_path)
    break_it(tmp_path)
    with pytest.raises(NoWeights, match=why):
        read_weights(find_folder(str(tmp_path)))
