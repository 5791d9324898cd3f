"""MiniLM in this process: text in, unit vector out. Needs onnxruntime (extra `semantic`) and the weights."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from breakwater_gateway.cache.embed import onnx_graph
from breakwater_gateway.cache.embed.weights import (
    NoWeights,
    find_folder,
    read_tokenizer,
    read_weights,
)
from breakwater_gateway.cache.embed.wordpiece import WINDOW

EXTRA: Final = "pip install 'breakwater-gateway[semantic]'"


class MiniLM:
    """One text at a time: 8-bit activations share a scale within a batch, so that a text's vector would depend
    on its neighbours, and a batch is no quicker on a CPU.
    """

    def __init__(self, local: str = "minilm", *, threads: int = 1) -> None:
        """Raises `NoWeights`: one sentence with the mend."""
        try:
            import onnxruntime
        except ImportError:
            raise NoWeights(f"onnxruntime is not installed: {EXTRA}") from None
        folder = find_folder(local)
        weights = read_weights(folder)
        self._tokenizer = read_tokenizer(folder)
        self.dimensions = weights.shape.hidden_size
        self.window = min(WINDOW, weights.shape.max_position_embeddings)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            onnx_graph.build(weights), options, providers=["CPUExecutionProvider"]
        )

    def embed(self, text: str) -> NDArray[np.float32] | None:
        """None when the text is longer than the window: what is cut off might be all that differs."""
        ids = self._tokenizer.encode(text)
        if len(ids) > self.window:
            return None
        pieces = np.array([ids], np.int64)
        (vectors,) = self._session.run(None, {"ids": pieces, "mask": np.ones_like(pieces)})
        vector: NDArray[np.float32] = vectors[0]
        return vector


def is_available(local: str = "minilm") -> str:
    """Empty when `MiniLM(local)` would work here; else the sentence that says why not."""
    import importlib.util

    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime is not installed: {EXTRA}"
    try:
        find_folder(local)
    except NoWeights as error:
        return str(error)
    return ""
