"""Operators' limits as a router knows them: the entries of `bw_limits`, by account."""

from collections.abc import Mapping
from typing import Final

import msgspec

from breakwater_protocol.ledger import OperatorLimit, Unit

_DECODER: Final = msgspec.json.Decoder(OperatorLimit)

Hards = Mapping[tuple[Unit, str], int]
"""By unit and period, the hard limit."""


class OperatorLimits:
    """Folds the bucket's entries in any order, by revision."""

    __slots__ = ("_by_account", "_by_key", "_revisions")

    def __init__(self) -> None:
        self._by_key: dict[str, OperatorLimit] = {}
        self._by_account: dict[str, dict[tuple[Unit, str], int]] = {}
        self._revisions: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def of(self, account: str) -> Hards:
        return self._by_account.get(account, _NONE)

    def fold(self, key: str, value: bytes | None, revision: int) -> str:
        """The account whose limits are others now; empty: none. Raises `msgspec.MsgspecError`."""
        if revision <= self._revisions.get(key, 0):
            return ""
        limit = None if value is None else _DECODER.decode(value)
        self._revisions[key] = revision
        before = self._by_key.pop(key, None)
        if before is not None:
            hards = self._by_account[before.account]
            hards.pop((before.unit, before.period), None)
            if not hards:
                del self._by_account[before.account]
        if limit is not None:
            self._by_key[key] = limit
            hards = self._by_account.setdefault(limit.account, {})
            hards[limit.unit, limit.period] = limit.hard
        changed = limit or before
        return "" if changed is None or limit == before else changed.account


_NONE: Final[Hards] = {}
