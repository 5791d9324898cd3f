"""Embedding vectors: texts that share words point the same way."""

import base64
import re
from functools import lru_cache
from hashlib import blake2b


def vector(text: str, dimensions: int, seed: int, *, as_base64: bool) -> str | list[float]:
    """The normalised sum of a random direction for each word; base64 is of float32, little-endian."""
    import numpy as np

    words = re.findall(r"\w+", text.lower())[:512] or [text]
    total = np.zeros(dimensions, dtype=np.float32)
    for word in words:
        total += np.frombuffer(_direction(word, dimensions, seed), dtype="<f4")
    total /= np.linalg.norm(total) or 1.0
    if as_base64:
        return base64.b64encode(total.astype("<f4").tobytes()).decode()
    return [float(x) for x in total]


@lru_cache(maxsize=1024)
def _direction(word: str, dimensions: int, seed: int) -> bytes:
    import numpy as np

    digest = blake2b(f"{seed}:{word}".encode(), digest_size=8).digest()
    random = np.random.default_rng(int.from_bytes(digest, "little"))
    return random.standard_normal(dimensions).astype("<f4").tobytes()
