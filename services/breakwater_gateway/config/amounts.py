"""Numbers, money and times in the configuration: as people write them, exactly."""

import re
from decimal import Decimal
from typing import Final

from msgspec import Struct

from breakwater_gateway.config.kinds import (
    JsonSchema,
    read_text,
    unexpected,
)
from breakwater_gateway.config.problems import Path, Report, shown
from breakwater_gateway.config.yaml_tree import Node, Scalar

_WHOLE: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_NUMBER: Final = re.compile(
    r"[+-]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?"
)
_DIGITS_MAX: Final = 40

_UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
DURATION_PATTERN: Final = (
    r"(?:[0-9]{1,9}\.[0-9]{1,6}(?:ms|s|m|h|d)"
    r"|(?=[0-9])(?:[0-9]{1,9}d)?(?:[0-9]{1,9}h)?(?:[0-9]{1,9}m)?(?:[0-9]{1,9}s)?(?:[0-9]{1,9}ms)?)"
)
"""`250ms`, `1.5s`, `1m30s`: units in falling order, each once; a fraction only on a single unit."""
_DURATION: Final = re.compile(DURATION_PATTERN)
_DURATION_PART: Final = re.compile(r"([0-9.]+)(ms|[smhd])")


class Whole(Struct, frozen=True):
    """A whole number, `_` between digits allowed."""

    minimum: int
    maximum: int

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = f"a whole number from {self.minimum:_} to {self.maximum:_}"
        text = read_text(node, expected, path, report)
        if text is None:
            return None
        if len(text) <= _DIGITS_MAX and _WHOLE.fullmatch(text):
            value = int(text)
            if self.minimum <= value <= self.maximum:
                return value
        unexpected(node, expected, shown(text), path, report)
        return None

    def schema(self) -> JsonSchema:
        # Quoted or with `_`, JSON sees text.
        return {
            "anyOf": [
                {"type": "integer", "minimum": self.minimum, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_WHOLE.pattern}$"},
            ]
        }


class Number(Struct, frozen=True):
    minimum: float
    maximum: float
    above: bool = False
    """The minimum itself is not allowed."""

    def read(self, node: Node, path: Path, report: Report) -> float | None:
        expected = f"a number {'above' if self.above else 'from'} {self.minimum:g}"
        expected += f" {'and up ' if self.above else ''}to {self.maximum:g}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if value < Decimal(str(self.minimum)) or value > Decimal(str(self.maximum)):
            unexpected(node, expected, shown(str(value)), path, report)
            return None
        if self.above and value == Decimal(str(self.minimum)):
            unexpected(node, expected, shown(str(value)), path, report)
            return None
        return float(value)

    def schema(self) -> JsonSchema:
        least = "exclusiveMinimum" if self.above else "minimum"
        return {
            "anyOf": [
                {"type": "number", least: self.minimum, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class NumberOr(Struct, frozen=True):
    """A number, or one word that stands instead of it."""

    minimum: float
    maximum: float
    word: str

    def read(self, node: Node, path: Path, report: Report) -> float | str | None:
        if isinstance(node, Scalar) and node.text == self.word:
            return self.word
        expected = f"a number from {self.minimum:g} to {self.maximum:g}, or {self.word}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if not Decimal(str(self.minimum)) <= value <= Decimal(str(self.maximum)):
            unexpected(node, expected, shown(str(value)), path, report)
            return None
        return float(value)

    def schema(self) -> JsonSchema:
        number = Number(self.minimum, self.maximum).schema()
        return {"anyOf": [*number["anyOf"], {"enum": [self.word]}]}


class UsdPerMillion(Struct, frozen=True):
    """USD per million tokens, read as whole nano-USD per token: 2.50 -> 2,500. Exact or refused."""

    maximum: int = 1_000_000

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = f"USD per million tokens, from 0 to {self.maximum:_}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if not 0 <= value <= self.maximum:
            unexpected(node, expected, shown(str(value)), path, report)
            return None
        nano = value * 1000
        if nano != nano.to_integral_value():
            unexpected(node, f"{expected}, in whole thousandths", shown(str(value)), path, report)
            return None
        return int(nano)

    def schema(self) -> JsonSchema:
        # No multipleOf: validators compute it in binary floating point and refuse 0.035.
        return {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class Usd(Struct, frozen=True):
    """An amount of USD, read as whole nano-USD: 0.5 -> 500,000,000. Positive, exact or refused."""

    maximum: int = 1_000_000_000

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = f"USD above 0 and up to {self.maximum:_}"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        if not 0 < value <= self.maximum:
            unexpected(node, expected, shown(str(value)), path, report)
            return None
        nano = value * 10**9
        if nano != nano.to_integral_value():
            unexpected(node, f"{expected}, in whole nano-USD", shown(str(value)), path, report)
            return None
        return int(nano)

    def schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": self.maximum},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class Share(Struct, frozen=True):
    """A part of a whole, above 0 and up to 1, read as millionths: 0.8 -> 800,000. Exact or refused."""

    def read(self, node: Node, path: Path, report: Report) -> int | None:
        expected = "a share above 0 and up to 1, such as 0.8"
        value = _decimal(node, expected, path, report)
        if value is None:
            return None
        millionths = value * 10**6
        if not 0 < value <= 1 or millionths != millionths.to_integral_value():
            unexpected(node, expected, shown(str(value)), path, report)
            return None
        return int(millionths)

    def schema(self) -> JsonSchema:
        return {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                {"type": "string", "pattern": f"^{_NUMBER.pattern}$"},
            ]
        }


class Duration(Struct, frozen=True):
    """Seconds, positive, in whole milliseconds."""

    max_s: int

    def read(self, node: Node, path: Path, report: Report) -> float | None:
        expected = f"a duration such as 250ms, 10s or 1m30s, at most {format_duration(self.max_s)}"
        text = read_text(node, expected, path, report)
        if text is None:
            return None
        ms = parse_duration_ms(text)
        if ms is None or not 0 < ms <= self.max_s * 1000:
            got = shown(text)
            if _NUMBER.fullmatch(text) and not text.startswith(("-", "+")):
                got += f' (a unit is missing: "{text[:20]}s"?)'
            unexpected(node, expected, got, path, report)
            return None
        return ms / 1000

    def schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^{DURATION_PATTERN}$"}


class DurationOrOff(Struct, frozen=True):
    """A duration; 0 for the word `off`."""

    max_s: int

    def read(self, node: Node, path: Path, report: Report) -> float | None:
        if isinstance(node, Scalar) and node.text == "off":
            return 0.0
        return Duration(self.max_s).read(node, path, report)

    def schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^(?:off|{DURATION_PATTERN})$"}


def parse_duration_ms(text: str) -> int | None:
    """Whole milliseconds of `1m30s`; None when it is not a duration or has a finer fraction."""
    if len(text) > 60 or not _DURATION.fullmatch(text):
        return None
    total = sum(
        (Decimal(count) * _UNITS_MS[unit] for count, unit in _DURATION_PART.findall(text)),
        Decimal(0),
    )
    return int(total) if total == total.to_integral_value() else None


def format_duration(seconds: float) -> str:
    """The shortest single unit that says it exactly: 90 -> `90s`, 3600 -> `1h`."""
    ms = round(seconds * 1000)
    for unit, size in _UNITS_MS.items():
        if ms % size == 0:
            return f"{ms // size}{unit}"
    raise AssertionError("a millisecond divides every whole number of them")


def _decimal(node: Node, expected: str, path: Path, report: Report) -> Decimal | None:
    text = read_text(node, expected, path, report)
    if text is None:
        return None
    if len(text) > _DIGITS_MAX or not _NUMBER.fullmatch(text):
        unexpected(node, expected, shown(text), path, report)
        return None
    return Decimal(text)
