"""What writers are told of a holder's leases, until they have it in their logs.

Reports are cumulative. A final one is repeated until its writer confirms it: then the lease is over. A writer
whose log has lost a grant asks for the lease itself, and gets it with the next report.
"""

from collections.abc import Container, Iterable, Sequence
from typing import Final

from msgspec import Struct

from breakwater_gateway.router.leases import Closed, Kept, Lease, amount
from breakwater_protocol.ledger import Claim, LeaseAsk, LeaseReport, Reported, Reports

ANSWER_S: Final = 0.5
"""Without an answer for so long, an ask or a report is said again."""
REPORTS_MAX: Final = 2_000
"""Leases in one message."""


class Say(Struct, frozen=True):
    """To the writer of `partition`; its answer goes to `heard` or `heard_report` with `number`'s name."""

    partition: int
    ask: LeaseAsk | None = None
    reports: Reports | None = None
    number: int = 0


class _Sent(Struct):
    """A report that is on its way."""

    partition: int
    finals: tuple[str, ...]
    at: float
    seen: int
    """The log had so much when it was said: who knows less was deposed, and does not know that yet."""


class LeaseReports:
    def __init__(self) -> None:
        self._finals: dict[int, dict[str, Closed]] = {}
        """By partition: what a writer has not confirmed yet."""
        self._fresh: dict[int, None] = {}
        """Partitions with a final report that was not said yet."""
        self._sent: dict[int, _Sent] = {}
        self._numbers = 0
        self._seen: dict[int, int] = {}
        self._claims: set[str] = set()

    @property
    def at_rest(self) -> bool:
        """Writers have confirmed every lease that was closed."""
        return not any(self._finals.values())

    def seen(self, partition: int) -> int:
        """The last sequence of its log that a writer has spoken of."""
        return self._seen.get(partition, 0)

    def see(self, partition: int, seq: int) -> None:
        if seq > self._seen.get(partition, 0):
            self._seen[partition] = seq

    def close(self, name: str, partition: int, closed: Closed) -> None:
        """Nothing more is spent from that lease."""
        self._finals.setdefault(partition, {})[name] = closed
        self._fresh[partition] = None

    # --- Saying -------------------------------------------------------------------------------

    def fresh(self, now: float) -> list[Say]:
        """What was closed and not said yet."""
        if not self._fresh:
            return []
        partitions, self._fresh = self._fresh, {}
        return [
            self._report(partition, finals, (), now)
            for partition in partitions
            if (finals := self._finals.get(partition, {}))
        ]

    def all(self, leases: Iterable[Lease], now: float) -> list[Say]:
        """Everything: what is held, and what is not confirmed."""
        self._sent = {n: sent for n, sent in self._sent.items() if now - sent.at < 10 * ANSWER_S}
        by_partition: dict[int, list[Lease]] = {}
        for lease in leases:
            by_partition.setdefault(lease.path.partition, []).append(lease)
        said: list[Say] = []
        for partition in sorted(by_partition.keys() | {p for p, f in self._finals.items() if f}):
            finals = list(self._finals.get(partition, {}).items())
            held = by_partition.get(partition, [])
            while finals or held:
                some, finals = finals[:REPORTS_MAX], finals[REPORTS_MAX:]
                space = REPORTS_MAX - len(some)
                those, held = held[:space], held[space:]
                said.append(self._report(partition, dict(some), those, now))
        self._fresh.clear()
        return said

    def _report(
        self, partition: int, finals: dict[str, Closed], leases: Sequence[Lease], now: float
    ) -> Say:
        reports = [
            LeaseReport(
                name,
                cum_spent=amount(closed.spent),
                final=True,
                claim=None if closed.lease is None else self._claim(closed.lease),
            )
            for name, closed in list(finals.items())[:REPORTS_MAX]
        ]
        names = tuple(report.lease for report in reports)
        for lease in leases:
            spent, held = lease.spent, lease.held
            reports.append(
                LeaseReport(
                    lease.id,
                    cum_spent=amount((spent[0], spent[1], spent[2])),
                    in_flight_max=amount((held[0], held[1], held[2])),
                    claim=self._claim(lease),
                )
            )
        self._numbers += 1
        seen = self.seen(partition)
        self._sent[self._numbers] = _Sent(partition, names, now, seen)
        return Say(partition, reports=Reports(tuple(reports), seen), number=self._numbers)

    def _claim(self, lease: Lease) -> Claim | None:
        """Only for a writer that asked: its log has lost the grant."""
        if lease.id not in self._claims:
            return None
        self._claims.discard(lease.id)
        return Claim(lease.path.lines, lease.periods, amount(lease.lent))

    # --- What writers answer ------------------------------------------------------------------

    def confirmed(self, number: int, reply: Reported) -> list[Kept] | None:
        """Leases that are over with this. None: the answer counts for nothing."""
        sent = self._sent.pop(number, None)
        if sent is None:
            return None
        if reply.claim:
            self._seen[sent.partition] = reply.seq  # the log was rolled back, and its writer knows
        elif reply.seq < sent.seen:
            return None
        self.see(sent.partition, reply.seq)
        finals = self._finals.get(sent.partition, {})
        return [
            Kept(lease, sent.partition, over=True)
            for lease in sent.finals
            if lease not in reply.claim and finals.pop(lease, None) is not None
        ]

    def unconfirmed(self, number: int) -> None:
        """No writer has that report; it is said again with the next one."""
        self._sent.pop(number, None)

    def claim(self, names: Iterable[str], held: Container[str]) -> None:
        """A writer wants to be told of these leases; of those that are `held` or not confirmed, it will be."""
        for name in names:
            if name in held or any(name in finals for finals in self._finals.values()):
                self._claims.add(name)
