"""What a check says of a row: where it went wrong, which rule excused it, or why it was not replayed."""

from collections.abc import Iterator
from typing import Literal

from msgspec import Struct


class Finding(Struct, frozen=True):
    """`reason` groups rows in the report; `detail` is of this row alone."""

    kind: Literal["wrong", "excused", "skipped"]
    reason: str
    detail: str = ""


Findings = Iterator[Finding]


def wrong(reason: str, detail: object = "") -> Finding:
    """The dialect does not do what it promises."""
    return Finding("wrong", reason, str(detail)[:300])


def excused(reason: str) -> Finding:
    """The row holds something that a rule exempts from a part of its check."""
    return Finding("excused", reason)


def skipped(reason: str) -> Finding:
    """The row is of an API, or of a use of it, that no dialect speaks."""
    return Finding("skipped", reason)
