"""A report as a PNG, drawn with numpy and zlib: lines over thresholds, and the few words they need.

PNG is a signature and chunks of length, kind, data and CRC (W3C PNG, third edition); letters are a font of
three by five dots.
"""

import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from breakwater_gateway.cache.calibrate import Report, Row

WIDTH, HEIGHT = 900, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 250, 50, 60
SCALE: Final = 2
"""Dots of the font are so many pixels wide."""

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
BLACK, GREY, LIGHT = (30, 30, 30), (130, 130, 130), (225, 225, 225)
BLUE, PALE_BLUE = (31, 90, 180), (150, 185, 230)
GREEN, PALE_GREEN = (20, 130, 70), (150, 210, 170)
RED, PALE_RED = (200, 40, 40), (240, 170, 170)

# Five rows of three dots, from the top, as octal digits.
_FONT: Final = {
    "0": "75557",
    "1": "26227",
    "2": "71747",
    "3": "71717",
    "4": "55711",
    "5": "74717",
    "6": "74757",
    "7": "71122",
    "8": "75757",
    "9": "75717",
    ".": "00002",
    "%": "51245",
    "a": "25755",
    "b": "65656",
    "c": "34443",
    "d": "65556",
    "e": "74647",
    "f": "74644",
    "g": "34553",
    "h": "55755",
    "i": "72227",
    "j": "11152",
    "k": "55655",
    "l": "44447",
    "m": "57755",
    "n": "65555",
    "o": "25552",
    "p": "65644",
    "q": "25563",
    "r": "65655",
    "s": "34216",
    "t": "72222",
    "u": "55557",
    "v": "55552",
    "w": "55775",
    "x": "55255",
    "y": "55222",
    "z": "71247",
    ":": "02020",
    "-": "00700",
    "/": "11244",
    " ": "00000",
    "(": "12221",
    ")": "42224",
    ",": "00024",
}


def png(found: Report) -> bytes:
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    _axes(image, found)
    lines: tuple[tuple[str, Colour, Callable[[Row], float | None]], ...] = (
        ("precision (veto)", GREEN, lambda row: row.with_veto.precision),
        ("precision", PALE_GREEN, lambda row: row.plain.precision),
        ("recall (veto)", BLUE, lambda row: row.with_veto.recall),
        ("recall", PALE_BLUE, lambda row: row.plain.recall),
        ("wrong, bound (veto)", RED, lambda row: row.with_veto.wrong_bound),
        ("wrong, bound", PALE_RED, lambda row: row.plain.wrong_bound),
    )
    for number, (name, colour, value) in enumerate(lines):
        _curve(image, [(row.threshold, value(row)) for row in found.rows], colour)
        y = TOP + 20 + 24 * number
        image[y + 3 : y + 7, WIDTH - RIGHT + 15 : WIDTH - RIGHT + 35] = colour
        _write(image, WIDTH - RIGHT + 42, y, name, BLACK)
    return _encode(image)


def _axes(image: Image, found: Report) -> None:
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        image[y, LEFT : WIDTH - RIGHT] = LIGHT
        _write(image, LEFT - 48, y - 4, f"{10 * tenth}%", GREY)
    for step in range(0, 30, 5):
        x = _x(0.70 + step / 100)
        image[TOP : HEIGHT - BOTTOM, x] = LIGHT
        _write(image, x - 14, HEIGHT - BOTTOM + 10, f"{0.70 + step / 100:.2f}", GREY)
    image[TOP : HEIGHT - BOTTOM, LEFT] = BLACK
    image[HEIGHT - BOTTOM, LEFT : WIDTH - RIGHT] = BLACK
    _write(image, LEFT, HEIGHT - 25, "threshold", BLACK)
    certified = found.certificate.threshold
    if certified is not None:
        x = _x(certified)
        image[TOP : HEIGHT - BOTTOM : 2, x - 1 : x + 1] = BLACK
    said = "not certified" if certified is None else f"certified: {certified:.2f}"
    _write(image, LEFT, 18, f"{found.pairs} pairs, target {100 * found.target:g}%, {said}", BLACK)


def _x(threshold: float) -> int:
    return LEFT + round((threshold - 0.70) / 0.29 * (WIDTH - LEFT - RIGHT))


def _y(share: float) -> int:
    return HEIGHT - BOTTOM - round(share * (HEIGHT - TOP - BOTTOM))


def _curve(image: Image, points: list[tuple[float, float | None]], colour: Colour) -> None:
    known = [(_x(at), _y(value)) for at, value in points if value is not None]
    for (x0, y0), (x1, y1) in pairwise(known):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        xs = np.linspace(x0, x1, steps + 1).round().astype(int)
        ys = np.linspace(y0, y1, steps + 1).round().astype(int)
        for dx in (0, 1):
            for dy in (0, 1):
                image[np.clip(ys + dy, 0, HEIGHT - 1), np.clip(xs + dx, 0, WIDTH - 1)] = colour


def _write(image: Image, x: int, y: int, text: str, colour: Colour) -> None:
    for character in text.lower():
        rows = _FONT.get(character, "77777")
        for down, row in enumerate(rows):
            for across in range(3):
                if int(row, 8) >> (2 - across) & 1:
                    top, left = y + down * SCALE, x + across * SCALE
                    image[top : top + SCALE, left : left + SCALE] = colour
        x += 4 * SCALE


def _encode(image: Image) -> bytes:
    height, width, _ = image.shape
    # Filter 0 before each line.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
