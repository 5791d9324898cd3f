"""The real holder and the real book under an adversary, and eight mistakes that it must catch."""

import sys

import msgspec
import pytest
from tests.sim.budget_world import Log, Message, Node, Violated, World, Writer

from breakwater_gateway.ledger import book as book_module
from breakwater_gateway.ledger.book import Book, Lease, Units
from breakwater_gateway.ledger.lending import Teller
from breakwater_gateway.router.holder import Holder
from breakwater_gateway.router.leases import Kept, Path
from breakwater_gateway.router.leases import Lease as Held
from breakwater_protocol.ledger import Grant, LeaseReply, Spend

STEPS = 220
SEEDS = 200
SEEDS_HUNTING = 400
"""At most, to find a mistake: each of them is found within a few."""


def run(seed: int, *, with_journal: bool = True, steps: int = STEPS) -> World:
    world = World(
        seed,
        hard=(20, 60, 400, 3000)[seed % 4],
        nodes=1 + seed % 4,
        with_journal=with_journal,
        period=("hour@UTC", "rolling:3600/96", "ever")[seed % 3],
    )
    for step in range(steps):
        world.step()
        world.check()
        if step % 40 == 39:
            world.check_books()
    world.come_to_rest()
    world.check_rest()
    return world


@pytest.mark.parametrize("with_journal", [True, False])
@pytest.mark.parametrize("block", range(4))
def test_no_adversary_overspends_a_limit(block: int, with_journal: bool) -> None:
    calls = 0
    for seed in range(block * SEEDS // 4, (block + 1) * SEEDS // 4):
        world = run(seed * 2 + with_journal, with_journal=with_journal)
        calls += world.numbers
    assert calls > SEEDS * 2  # it was no world in which nothing is granted


@pytest.mark.drill
def test_thousands_of_adversaries() -> None:
    calls = 0
    for seed in range(10_000, 13_000):
        calls += run(seed, with_journal=seed % 3 > 0, steps=300).numbers
    sys.stdout.write(f"3,000 seeds, 300 steps each, {calls:,} calls: no invariant broken\n")
    assert calls > 30_000


# --- the model's eight mistakes, made in the real code ------------------------------------------


def void_on_expiry(patch: pytest.MonkeyPatch) -> None:
    """What an expired lease has not reported goes back at once."""
    right = book_module.charge_of

    def wrong(lease: Lease) -> tuple[Units, Units]:
        return (lease.spent, (0, 0, 0)) if lease.state == "expired" else right(lease)

    patch.setattr(book_module, "charge_of", wrong)


def no_fencing(patch: pytest.MonkeyPatch) -> None:
    """The log takes the append of a writer that was deposed."""

    def wrong(self: Log, data: bytes, expected: int) -> bool:
        del expected
        self.take(data)
        return True

    patch.setattr(Log, "append", wrong)


def reply_before_append(patch: pytest.MonkeyPatch) -> None:
    """Answers leave before what they rest on is in the log."""
    right = Writer.commit

    def wrong(self: Writer, teller: Teller, replies: list[Message], *, ack_lost: bool) -> None:
        self.answer(replies)
        self.world.check_answers()
        right(self, teller, [], ack_lost=ack_lost)

    patch.setattr(Writer, "commit", wrong)


def close_with_inflight(patch: pytest.MonkeyPatch) -> None:
    """A lease is closed while calls of it are in flight."""

    def wrong(self: Holder, lease: Held) -> None:
        if lease in lease.path.leases:
            lease.path.leases.remove(lease)
        if lease.id in self._leases:
            self._finish(lease)

    patch.setattr(Holder, "_retire", wrong)


def forget_inflight(patch: pytest.MonkeyPatch) -> None:
    """A new life closes old leases at what was spent, without what was in flight."""

    def wrong(self: Holder, kept: Kept) -> None:
        self._close(kept.lease, kept.partition, kept.spent)

    patch.setattr(Holder, "close_lease_of", wrong)


def reset_lease(patch: pytest.MonkeyPatch) -> None:
    """A new life believes that an old lease is as good as new."""

    def wrong(self: World, fresh: Node, dead: Node) -> None:
        for lease in dead.holder.leases():
            path = Path(lease.path.partition, lease.path.lines)
            again = Held(lease.id, path, lease.lent, ends_at=lease.ends_at, now=self.now)
            again.periods = lease.periods
            path.leases.append(again)
            fresh.holder._leases[lease.id] = again

    patch.setattr(World, "adopt", wrong)


def additive(patch: pytest.MonkeyPatch) -> None:
    """Reports are added up instead of being cumulative."""
    right = Book._spend

    def wrong(self: Book, op: Spend) -> None:
        lease = self.leases[op.lease]
        total = lease.spent[1] + op.spent.tokens
        right(self, msgspec.structs.replace(op, spent=book_module.amount_of((0, total, 0))))

    patch.setattr(Book, "_spend", wrong)


def no_idem(patch: pytest.MonkeyPatch) -> None:
    """A lease that is asked for twice is lent twice."""
    right = Teller._again

    def wrong(self: Teller, lease: Lease) -> LeaseReply:
        if lease.state == "open" and lease.debits:
            more = tuple(2 * each for each in lease.amount)
            del self._book.leases[lease.id]
            self.enter(
                Grant(
                    lease.id,
                    tuple(line.number for line, _ in lease.debits),
                    tuple(bucket.key for _, bucket in lease.debits),
                    book_module.amount_of((more[0], more[1], more[2])),
                )
            )
            lease = self._book.leases[lease.id]
        return right(self, lease)

    patch.setattr(Teller, "_again", wrong)


MISTAKES = (
    void_on_expiry,
    no_fencing,
    reply_before_append,
    close_with_inflight,
    forget_inflight,
    reset_lease,
    additive,
    no_idem,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_caught(mistake: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(mistake)
    mistake(monkeypatch)
    for seed in range(SEEDS_HUNTING):
        try:
            run(seed)
        except (Violated, book_module.LogBroken):
            return
    pytest.fail(f"{SEEDS_HUNTING} seeds did not find it")
