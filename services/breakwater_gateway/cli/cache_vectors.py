"""The vectors that `cache calibrate` judges by: of a local MiniLM, or of a model of the gateway's own.

They must be those that the running cache compares by: similarities of two embedders have nothing in common.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from breakwater_gateway.cli import output
from breakwater_gateway.cli.cache_asking import on_bus

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus

BATCH: Final = 64
"""Texts in one request."""
AT_ONCE: Final = 4
ASK_S: Final = 60.0


class _Item(Struct):
    embedding: list[float]
    index: int = 0


class EmbeddingList(Struct):
    data: list[_Item]


def vectors_of(texts: Sequence[str], local: str, *, as_json: bool = False) -> list[Any]:
    """Unit vectors of a local MiniLM, None for texts beyond its window; kept in a file for the next time."""
    import numpy as np

    from breakwater_gateway.cache.embed.minilm import MiniLM
    from breakwater_gateway.cache.embed.weights import NoWeights

    name = hashlib.blake2b(local.encode(), digest_size=6).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "breakwater"
    file = folder / f"vectors-{name}.npz"
    known: dict[bytes, Any] = {}
    if file.is_file():
        with np.load(file) as kept:
            known = dict(zip(map(bytes, kept["keys"]), kept["vectors"], strict=True))
    keys = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        for text in texts
    ]
    missing = [(key, text) for key, text in zip(keys, texts, strict=True) if key not in known]
    if missing:
        try:
            model = MiniLM(local)
        except NoWeights as error:
            output.fail(str(error), code=output.USAGE, as_json=as_json)
        for key, text in missing:
            vector = model.embed(text)
            known[key] = np.zeros(model.dimensions, np.float32) if vector is None else vector
        folder.mkdir(parents=True, exist_ok=True)
        table = np.array([np.frombuffer(key, np.uint8) for key in known])
        partial = file.with_name(f"{file.stem}-{os.getpid()}.npz")
        np.savez(partial, keys=table, vectors=np.array(list(known.values()), np.float32))
        partial.replace(file)
    return [known[key] if known[key].any() else None for key in keys]


def gateway_vectors(
    texts: Sequence[str],
    model: str,
    *,
    nats_url: str,
    creds: str | None,
    tenant: str,
    as_json: bool,
) -> list[Any]:
    """Unit vectors by a model of the gateway's own, None for texts that are never looked up.

    Never kept in a file: another deployment may stand behind the name next time.
    """
    from breakwater_protocol.cache import TEXT_MAX

    short = [text for text in texts if text.strip() and len(text) <= TEXT_MAX]
    found: dict[str, Any] = {}

    async def work(bus: "Bus") -> int:
        import asyncio

        gate = asyncio.Semaphore(AT_ONCE)

        async def embed(some: list[str]) -> None:
            async with gate:
                vectors = await _ask(bus, some, model, tenant)
            if isinstance(vectors, str):
                refused.append(vectors)
            else:
                found.update(zip(some, vectors, strict=True))

        refused: list[str] = []
        for first in range(0, len(short), BATCH * AT_ONCE):
            wave = short[first : first + BATCH * AT_ONCE]
            await asyncio.gather(
                *(embed(wave[at : at + BATCH]) for at in range(0, len(wave), BATCH))
            )
            if refused:
                output.fail(
                    f"the model {model!r} of the gateway makes no embeddings of these texts: {refused[0]}",
                    code=output.FAILED,
                    as_json=as_json,
                )
        return 0

    on_bus(
        work,
        nats_url,
        creds,
        as_json=as_json,
        mend=f"the configuration embeds with the gateway's model {model!r}, so it has to run: start it"
        " with `breakwater up`, name its NATS with --nats, or judge by the local MiniLM with --local",
    )
    return [found.get(text) for text in texts]


async def _ask(bus: "Bus", texts: list[str], model: str, tenant: str) -> list[Any] | str:
    """Unit vectors in the texts' order, or why there are none."""
    import msgspec
    import numpy as np

    from breakwater_gateway.cache.semantic import unit
    from breakwater_protocol import headers as h
    from breakwater_protocol.subjects import Subjects

    headers = {h.CACHE: "off", h.PRIORITY: "batch"}
    reply = await bus.ask(
        Subjects().embed.at(tenant),
        msgspec.json.encode({"model": model, "input": texts}),
        headers=headers,
        timeout_s=ASK_S,
    )
    if h.SERVICE_ERROR_CODE in reply.headers:
        return reply.headers.get(h.SERVICE_ERROR, "") or reply.headers[h.SERVICE_ERROR_CODE]
    try:
        answer = msgspec.json.decode(reply.data, type=EmbeddingList)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return f"its answer is no list of embeddings: {error}"
    items = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(len(texts))):
        return f"{len(items)} embeddings came for {len(texts)} texts"
    vectors = [unit(np.array(item.embedding, dtype=np.float32), None) for item in items]
    if any(vector is None or vector.size != len(items[0].embedding) for vector in vectors):
        return "a vector is not finite, zero, or of another size"
    return vectors
