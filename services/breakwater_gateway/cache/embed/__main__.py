"""The embedder's own process: frames of text on standard input, frames of vectors on standard output.

A frame is four bytes of length, little-endian, and that many bytes. The first frame out is the number of
dimensions as text. A text is answered by float32, or by nothing when it is too long. The process ends when
its input does, so it cannot outlive whoever started it.
"""

import struct
import sys
from typing import BinaryIO

from breakwater_gateway.cache.embed.minilm import MiniLM
from breakwater_gateway.cache.embed.weights import NoWeights

FRAME_MAX = 1 << 20


def main() -> int:
    try:
        model = MiniLM(sys.argv[1] if len(sys.argv) > 1 else "minilm")
    except NoWeights as error:
        print(error, file=sys.stderr)
        return 2
    source, target = sys.stdin.buffer, sys.stdout.buffer
    _write(target, str(model.dimensions).encode())
    while (frame := _read(source)) is not None:
        vector = model.embed(frame.decode("utf-8", "replace"))
        _write(target, b"" if vector is None else vector.astype("<f4").tobytes())
    return 0


def _read(source: BinaryIO) -> bytes | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    (size,) = struct.unpack("<I", head)
    if size > FRAME_MAX:
        raise ValueError(f"a frame of {size} bytes")
    frame = source.read(size)
    return frame if len(frame) == size else None


def _write(target: BinaryIO, frame: bytes) -> None:
    target.write(struct.pack("<I", len(frame)) + frame)
    target.flush()


if __name__ == "__main__":
    sys.exit(main())
