"""Warming the cache: requests out of a file are asked as any caller would ask them, so that their answers are kept."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec import Raw, Struct

from breakwater_protocol import headers as h
from breakwater_protocol.subjects import Subjects

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Bus

ROWS_MAX: Final = 100_000
BYTES_MAX: Final = 256 * 1024 * 1024
AT_ONCE: Final = 8


class Row(Struct, frozen=True):
    """`{"request": {...}, "api": "chat", "namespace": ""}`; the body asks for no stream."""

    request: Raw
    api: Literal["chat", "embeddings", "messages", "responses", "generate"] = "chat"
    namespace: str = ""


class BadRows(ValueError):
    """The file is not what it should be; names the line."""


class _Body(Struct):
    stream: bool | None = None


def read_rows(text: bytes) -> list[Row]:
    """Raises `BadRows`."""
    if len(text) > BYTES_MAX:
        raise BadRows(f"more than {BYTES_MAX} bytes")
    rows: list[Row] = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        if len(rows) >= ROWS_MAX:
            raise BadRows(f"line {number}: more than {ROWS_MAX} requests")
        try:
            row = msgspec.json.decode(line, type=Row)
            streams = msgspec.json.decode(row.request, type=_Body).stream
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadRows(f"line {number}: {str(error)[:200]}") from None
        if streams:
            raise BadRows(f"line {number}: leave out stream, one entry serves both")
        rows.append(row)
    return rows


async def warm(bus: "Bus", rows: Sequence[Row], *, tenant: str, timeout_s: float) -> dict[str, int]:
    """How many were `miss` (asked and kept), `hit` (kept already), `bypass` (never kept) or `failed`."""
    from breakwater_gateway.runtime.bus import BusError

    subjects, counts = Subjects(), dict.fromkeys(("miss", "hit", "bypass", "failed"), 0)
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(row: Row) -> None:
        headers = {h.CACHE_NAMESPACE: row.namespace} if row.namespace else {}
        subject = getattr(subjects, row.api).at(tenant)
        async with gate:
            try:
                reply = await bus.ask(
                    subject, bytes(row.request), headers=headers, timeout_s=timeout_s
                )
            except BusError:
                counts["failed"] += 1
                return
        verdict = reply.headers.get(h.CACHE, "")
        failed = h.SERVICE_ERROR_CODE in reply.headers
        counts["failed" if failed or verdict not in counts else verdict] += 1

    await asyncio.gather(*(ask(row) for row in rows))
    return counts
