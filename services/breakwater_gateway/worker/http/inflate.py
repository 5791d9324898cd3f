"""Content codings undone piece by piece, every step and the whole bounded: a pure machine.

RFC 9110, 8.4.1: gzip (RFC 1952, possibly several members), deflate (RFC 1950; some servers send RFC
1951 without its wrapper). We ask for `identity`, so this serves providers that do as they please.
"""

import zlib
from typing import Final

from breakwater_gateway.worker.http.errors import AnswerTooLarge, CutAnswer, MalformedHttp

STEP_BYTES: Final = 256 * 1024
"""At most this much comes out of one step, however much went in."""


class Inflate:
    """`feed` what came, then `step` until it gives nothing; `finish` at the end of the body."""

    __slots__ = ("_coding", "_held", "_limit", "_machine", "_made", "_more")

    def __init__(self, coding: str, limit: int) -> None:
        """Raises MalformedHttp if the coding is unknown. `limit`: bytes in all, decoded."""
        if coding not in {"gzip", "x-gzip", "deflate"}:
            raise MalformedHttp(f"unknown content-encoding {coding[:64]!r}")
        self._coding = coding
        self._limit = limit
        self._machine: zlib._Decompress | None = None
        self._held = b""
        self._made = 0
        self._more = False
        """The last step filled its bound, so the machine may hold output whose input it has taken."""

    def feed(self, data: bytes) -> None:
        self._held += data

    def step(self) -> bytes:
        """At most STEP_BYTES of output; empty when more input is needed.

        Raises MalformedHttp, or AnswerTooLarge once the whole exceeds the limit.
        """
        while self._held or self._more:
            machine = self._machine
            if machine is None:
                machine = self._open()
                if machine is None:
                    return b""
            try:
                out = machine.decompress(self._held, STEP_BYTES)
            except zlib.error as error:
                raise MalformedHttp(f"the {self._coding} body does not decode: {error}") from error
            self._held = machine.unused_data if machine.eof else machine.unconsumed_tail
            if machine.eof and self._held and self._coding == "deflate":
                raise MalformedHttp("data after the end of the deflate body")
            self._machine = None if machine.eof and self._held else machine
            self._more = len(out) == STEP_BYTES and not machine.eof
            self._made += len(out)
            if self._made > self._limit:
                raise AnswerTooLarge(self._limit)
            if out:
                return out
        return b""

    def finish(self) -> None:
        """The body has ended. Raises CutAnswer if the coding has not."""
        if self._held or (self._machine is not None and not self._machine.eof):
            raise CutAnswer("coding", f"the {self._coding} body ended early")

    def _open(self) -> "zlib._Decompress | None":
        if self._coding != "deflate":
            self._machine = zlib.decompressobj(wbits=31)
        elif len(self._held) < 2:
            return None
        else:
            first, second = self._held[0], self._held[1]
            wrapped = first & 0x0F == 8 and (first * 256 + second) % 31 == 0
            self._machine = zlib.decompressobj(wbits=15 if wrapped else -15)
        return self._machine


def inflater(content_encoding: str, limit: int) -> Inflate | None:
    """The machine for a content-encoding header; None where nothing is to be undone."""
    coding = content_encoding.strip().lower()
    return None if coding in {"", "identity"} else Inflate(coding, limit)
