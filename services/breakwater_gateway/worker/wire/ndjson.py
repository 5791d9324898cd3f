"""An incremental parser of newline-delimited JSON (`application/x-ndjson`), on bytes.

A line ends with LF, alone or after CR; blank lines say nothing. Nothing is decoded here, so a character
cut between two chunks needs no care. Source: github.com/ndjson/ndjson-spec, 1.0.
"""


class LineParser:
    """Feed it chunks as they come; it holds at most one unfinished line of `limit` bytes.

    `too_long` is True from the first line that exceeds the limit on: the lines before it were given out,
    nothing after it is.
    """

    __slots__ = ("_held", "_limit", "too_long")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = bytearray()
        self.too_long = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        if self.too_long:
            return []
        found = data.split(b"\n")
        last = found.pop()
        if found and self._held:
            self._held += found[0]
            found[0] = bytes(self._held)
            self._held.clear()
        lines: list[bytes] = []
        for line in found:
            if len(line) > self._limit:
                self.too_long = True
                return lines
            stripped = line.strip(b" \t\r")
            if stripped:
                lines.append(stripped)
        self._held += last
        if len(self._held) > self._limit:
            self.too_long = True
            self._held.clear()
        return lines

    def finish(self) -> bytes:
        """The line that the body's end left without its LF; empty when there is none."""
        line = bytes(self._held).strip(b" \t\r")
        self._held.clear()
        return line
