"""The budget book: grants, reports in any order, expiry, periods, soft limits, refusals."""

import itertools
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from tests.pure.ledger_desk import Desk, line, tokens

from breakwater_gateway.ledger.snapshot import (
    BadSnapshot,
    decode_snapshot,
    encode_snapshot,
    state_hash,
)
from breakwater_protocol.ledger import (
    AMOUNT_MAX,
    Amount,
    Claim,
    Contended,
    Correct,
    Done,
    Exhausted,
    Granted,
    LeaseReply,
    LeaseReport,
    Refused,
    Release,
    Resume,
    SetLimit,
)

H = "r1/1/"


def granted(reply: LeaseReply) -> int:
    assert isinstance(reply, Granted), reply
    return reply.amount.tokens


def test_a_grant_is_held_until_it_is_spent() -> None:
    desk = Desk()
    reply = desk.ask(H + "1", want=15)
    assert isinstance(reply, Granted)
    assert (reply.amount, reply.seq) == (tokens(15), 1)
    assert (reply.lines[0].period, reply.lines[0].available) == ("d:2026-11-18@UTC", 985)
    assert (desk.committed(), desk.held()) == (0, 15)
    desk.spent(H + "1", 6)
    assert (desk.committed(), desk.held()) == (6, 9)
    desk.spent(H + "1", 7, final=True)
    assert (desk.committed(), desk.held()) == (7, 0)


@pytest.mark.parametrize(
    ("hard", "least", "want", "lent"),
    [
        (1000, 10, 15, 15),  # what is wanted
        (1000, 10, 500, 20),  # 2 % of the limit
        (1000, 30, 500, 30),  # never less than one request
        (100, 10, 500, 10),
        (10, 10, 500, 10),  # the whole limit, where one request needs it
        (1_000_000, 10, 500_000, 20_000),
    ],
)
def test_a_lease_is_as_large_as_it_may_be(hard: int, least: int, want: int, lent: int) -> None:
    assert granted(Desk().ask(H + "1", line(hard=hard), least=least, want=want)) == lent


def test_near_the_limit_and_among_many_a_lease_shrinks_to_one_request() -> None:
    desk = Desk()
    path = line(hard=10_000)
    assert granted(desk.ask(H + "1", path, want=10_000)) == 200
    for holder in range(2, 12):
        desk.ask(f"r{holder}/1/1", path, want=10_000)
    assert granted(desk.ask("r12/1/1", path, want=10_000)) < 50
    desk.spent(H + "1", 9_000)
    assert granted(desk.ask("r13/1/1", path, want=10_000)) == 10


def test_asked_again_it_is_the_same_lease() -> None:
    desk = Desk()
    first = desk.ask(H + "1")
    assert desk.ask(H + "1", want=900) == first
    assert len(desk.log) == 1
    desk.spent(H + "1", 5, final=True)
    again = desk.ask(H + "1")
    assert isinstance(again, Refused)
    assert again.reason == "stale_lease"
    assert desk.committed() == 5


def test_a_lease_debits_its_whole_path_or_nothing() -> None:
    desk = Desk()
    path = (line(), line("org:acme", 50), line("team:acme/red", 1000, period="month@UTC"))
    assert granted(desk.ask(H + "1", *path)) == 10
    assert (desk.held(), desk.held("org:acme"), desk.held("team:acme/red", "month@UTC")) == (
        10,
    ) * 3
    desk.spent(H + "1", 45)
    refused = desk.ask(H + "2", *path)
    assert isinstance(refused, Exhausted)
    assert (refused.account, refused.remaining) == ("org:acme", 5)
    assert (desk.committed(), desk.held()) == (45, 0)
    assert desk.committed("team:acme/red", "month@UTC") == 45


def test_units_are_kept_apart() -> None:
    desk = Desk()
    path = (line(hard=1000), line(unit="nano_usd", hard=5_000_000, period="month@UTC"))
    reply = desk.ask(H + "1", *path, least=Amount(40_000, 10, 1), want=Amount(40_000, 15, 1))
    assert isinstance(reply, Granted)
    assert reply.amount == Amount(40_000, 15)
    desk.report(LeaseReport(H + "1", Amount(39_999, 9, 1), final=True))
    assert desk.committed() == 9
    assert desk.book.index["user:acme/alice", "nano_usd", "month@UTC"].committed == 39_999


def test_exhausted_says_when_the_period_resets_and_contended_when_to_ask_again() -> None:
    desk = Desk()
    path = line(hard=100)
    granted(desk.ask(H + "1", path, least=60))
    waiting = desk.ask(H + "2", path, least=60)
    assert isinstance(waiting, Contended)
    assert waiting.retry_ms > 0
    desk.spent(H + "1", 60, final=True)
    refused = desk.ask(H + "2", path, least=60)
    assert isinstance(refused, Exhausted)
    assert (refused.limit, refused.remaining) == (100, 40)
    assert refused.resets_in_s == 12 * 3600 + 53 * 60 + 20
    assert granted(desk.ask(H + "3", path, least=40)) == 40


def test_more_than_the_limit_is_exhausted_for_ever() -> None:
    refused = Desk().ask(H + "1", line(hard=100), least=101)
    assert isinstance(refused, Exhausted)
    assert refused.resets_in_s == -1


REPORTS = (
    LeaseReport(H + "1", tokens(3), tokens(4)),
    LeaseReport(H + "1", tokens(5), tokens(1)),
    LeaseReport(H + "1", tokens(7), final=True),
    LeaseReport(H + "2", tokens(2), tokens(8)),
    LeaseReport(H + "2", tokens(4), tokens(2)),
)


def test_reports_in_any_order_and_any_number_give_the_same_book() -> None:
    found = set()
    for order in itertools.permutations(REPORTS):
        desk = Desk()
        desk.ask(H + "1")
        desk.ask(H + "2")
        for report in (*order, *order[:2]):
            desk.report(report)
        desk.book.n = 0  # how many records it took is another matter
        found.add(desk.hash())
        assert (desk.committed(), desk.held()) == (11, 16)
    assert len(found) == 1


def test_an_expired_lease_counts_as_spent_whole_until_its_holder_s_last_word() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.spent(H + "1", 5)
    desk.expire(H + "1")
    assert (desk.committed(), desk.held()) == (20, 0)
    assert desk.spent(H + "1", 8).expired == (H + "1",)
    assert desk.committed() == 20
    desk.spent(H + "1", 9, final=True)
    assert desk.committed() == 9


def test_an_operator_s_release_charges_what_was_in_flight_until_the_holder_knows_better() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.spent(H + "1", 5, in_flight=7)
    assert desk.operate(Release(H + "1", by="op", why="machine is gone")) == Done(0)
    assert (desk.committed(), desk.held()) == (12, 0)
    assert desk.spent(H + "1", 6).unknown == (H + "1",)
    desk.spent(H + "1", 6, final=True)
    assert desk.committed() == 6
    assert isinstance(desk.operate(Release(H + "1", by="op")), Refused)


def test_a_final_report_that_overtakes_its_ask_closes_the_lease_before_it_opens() -> None:
    desk = Desk()
    desk.spent(H + "1", 0, final=True)
    late = desk.ask(H + "1")
    assert isinstance(late, Refused)
    assert late.reason == "stale_lease"
    assert not desk.book.lines


def test_a_breach_is_told_and_enters_the_book() -> None:
    desk = Desk()
    desk.ask(H + "1", want=10)
    desk.spent(H + "1", 25)
    desk.spent(H + "1", 26, final=True)
    assert desk.committed() == 26
    assert desk.kinds() == ["breach"]
    assert desk.events[0].lease == H + "1"


def test_a_settlement_belongs_to_the_period_of_its_lease() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.spent(H + "1", 5)
    desk.pass_time(86_400)
    assert desk.kinds() == ["reset"]
    assert (desk.committed(), desk.held()) == (0, 0)
    granted(desk.ask(H + "2"))
    desk.spent(H + "1", 9, final=True)
    assert (desk.committed(), desk.held()) == (0, 20)
    assert (
        desk.book.index["user:acme/alice", "tokens", "day@UTC"]
        .buckets["d:2026-11-18@UTC"]
        .committed
        == 9
    )


def test_a_backward_clock_never_reopens_a_period() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.spent(H + "1", 1000)
    desk.pass_time(86_400)
    granted(desk.ask(H + "2"))
    desk.t_ms -= 86_400_000
    reply = desk.ask(H + "3")
    assert isinstance(reply, Granted)
    assert reply.lines[0].period == "d:2026-11-19@UTC"


@pytest.mark.parametrize(
    ("zone", "night"),
    [
        ("Europe/Berlin", "2026-03-29T00:00:00+00:00"),
        ("Europe/Berlin", "2026-10-25T00:00:00+00:00"),
        ("America/Havana", "2026-11-01T04:00:00+00:00"),
        ("America/Sao_Paulo", "2018-11-04T03:00:00+00:00"),
        ("America/St_Johns", "2008-11-02T02:30:00+00:00"),
    ],
)
def test_on_nights_when_clocks_are_changed_each_day_is_spent_once(zone: str, night: str) -> None:
    """Every quarter of an hour somebody takes all there is, for two days before and after."""
    desk = Desk()
    desk.t_ms = int(datetime.fromisoformat(night).timestamp() * 1000) - 2 * 86_400_000
    path = line(hard=10, period=f"day@{zone}")
    lent: dict[str, int] = {}
    for step in range(4 * 24 * 4):
        reply = desk.ask(f"{H}{step}", path, least=10)
        if isinstance(reply, Granted):
            key = reply.lines[0].period
            day = datetime.fromtimestamp(desk.t_ms / 1000, ZoneInfo(zone)).date().isoformat()
            assert key == f"d:{day}@{zone}"
            lent[key] = lent.get(key, 0) + reply.amount.tokens
            desk.spent(f"{H}{step}", 10, final=True)
        else:
            assert isinstance(reply, Exhausted)
            assert 0 < reply.resets_in_s <= 25 * 3600
        desk.pass_time(900)
    assert set(lent.values()) == {10}
    assert len(lent) in (4, 5)
    assert desk.kinds().count("reset") in (len(lent), len(lent) - 1)
    assert state_hash(desk.replayed()) == desk.hash()


def test_a_line_that_nobody_uses_is_forgotten_with_its_period() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.spent(H + "1", 5, final=True)
    desk.pass_time(86_400)
    desk.pass_time(86_400)
    assert not desk.book.lines
    assert not desk.book.leases
    assert isinstance(desk.ask(H + "1"), Refused)


def test_a_rolling_window_counts_what_its_slots_hold() -> None:
    desk = Desk()
    path = line(hard=100, period="rolling:9600/96")
    desk.ask(H + "1", path, least=60)
    desk.spent(H + "1", 60, final=True)
    desk.pass_time(4_800)
    desk.ask(H + "2", path, least=30)
    desk.spent(H + "2", 30, final=True)
    refused = desk.ask(H + "3", path, least=30)
    assert isinstance(refused, Exhausted)
    # The first slot began at …06:40, which is a multiple of its 100 s, and counts for 97 of them.
    assert refused.resets_in_s == 9_700 - 4_800
    desk.pass_time(refused.resets_in_s - 0.001)
    assert isinstance(desk.ask(H + "4", path, least=30), Exhausted)
    desk.pass_time(0.001)
    assert granted(desk.ask(H + "5", path, least=30)) == 30
    assert desk.committed(period="rolling:9600/96") == 30


# --- Soft and hard limits -----------------------------------------------------------------------


def test_each_soft_threshold_is_crossed_once_in_a_period_and_generation() -> None:
    desk = Desk()
    path = line(hard=100, soft=(500_000, 800_000), revision=1)
    desk.ask(H + "1", path, least=100)
    for spent in (49, 50, 60, 79, 80, 81, 100):
        desk.spent(H + "1", spent)
    soft = [event for event in desk.events if event.kind == "soft"]
    assert [(event.threshold, event.committed) for event in soft] == [(500_000, 50), (800_000, 80)]
    # Another revision with the same limit is the same generation, another limit is not.
    desk.ask(H + "2", line(hard=100, soft=(500_000, 800_000), revision=2), least=1)
    desk.ask(H + "3", line(hard=120, soft=(500_000, 800_000), revision=3), least=1)
    later = [event for event in desk.events if event.kind == "soft"][2:]
    assert [(event.threshold, event.generation) for event in later] == [(500_000, 2), (800_000, 2)]


def test_of_two_limits_the_later_holds_whoever_asks_last() -> None:
    desk = Desk()
    desk.ask(H + "1", line(hard=100, revision=7))
    desk.ask(H + "2", line(hard=50, revision=6))
    desk.ask(H + "3", line(hard=70, revision=7))
    assert desk.book.index["user:acme/alice", "tokens", "day@UTC"].hard == 100
    assert desk.book.index["user:acme/alice", "tokens", "day@UTC"].generation == 1


def test_a_refusal_is_told_once_in_a_period() -> None:
    desk = Desk()
    path = line(hard=10)
    desk.ask(H + "1", path)
    desk.spent(H + "1", 10, final=True)
    for number in range(2, 6):
        desk.ask(f"{H}{number}", path)
    assert desk.kinds() == ["soft", "hard"]
    desk.pass_time(86_400)
    assert desk.kinds() == ["soft", "hard", "reset"]
    desk.ask(H + "9", path, least=11)
    assert desk.kinds() == ["soft", "hard", "reset", "hard"]


def test_an_operator_s_limit_goes_before_the_configuration_s_until_it_is_taken_back() -> None:
    desk = Desk()
    desk.ask(H + "1", line(hard=100), least=90)
    desk.spent(H + "1", 90)
    change = SetLimit("user:acme/alice", "tokens", "day@UTC", 50, by="op")
    assert desk.operate(change) == Done(0)
    assert isinstance(desk.ask(H + "2", line(hard=100), least=1), Exhausted)
    desk.operate(SetLimit("user:acme/alice", "tokens", "day@UTC", None, by="op"))
    assert granted(desk.ask(H + "3", line(hard=100), least=1)) == 1


def test_a_correction_changes_what_is_committed() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.spent(H + "1", 10, final=True)
    alice = "user:acme/alice"
    refund = Correct(alice, "tokens", "day@UTC", -4, by="op", why="refund")
    assert desk.operate(refund) == Done(0)
    assert desk.committed() == 6
    assert isinstance(desk.operate(Correct(alice, "tokens", "day@UTC", -7, by="op")), Refused)
    assert isinstance(desk.operate(Correct("org:acme", "tokens", "day@UTC", 1, by="op")), Refused)


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease", "path", "least", "reason"),
    [
        ("r1", line(), 1, "malformed"),
        ("r1/x/1", line(), 1, "malformed"),
        ("r1/1/-1", line(), 1, "malformed"),
        (H + "1", line(hard=-1), 1, "malformed"),
        (H + "1", line(hard=AMOUNT_MAX + 1), 1, "malformed"),
        (H + "1", line(), -1, "malformed"),
        (H + "1", line(), AMOUNT_MAX + 1, "malformed"),
        (H + "1", line(soft=(900_000, 800_000)), 1, "malformed"),
        (H + "1", line(soft=(0,)), 1, "malformed"),
        (H + "1", line(soft=(1_000_001,)), 1, "malformed"),
        (H + "1", line("planet:earth"), 1, "malformed"),
        (H + "1", line("user:/alice"), 1, "malformed"),
        (H + "1", line("user:acme/" + "a" * 2000), 1, "malformed"),
        (H + "1", line(period="year@UTC"), 1, "malformed"),
        (H + "1", line(period="day@Mars/Olympus"), 1, "unknown_zone"),
        (H + "1", line("user:beta/alice"), 1, "wrong_partition"),
    ],
)
def test_bad_asks_are_refused_and_leave_the_books_alone(
    lease: str, path: object, least: int, reason: str
) -> None:
    desk = Desk()
    reply = desk.ask(lease, path, least=least)  # type: ignore[arg-type]
    assert isinstance(reply, Refused)
    assert reply.reason == reason
    assert reply.message
    assert not desk.log


def test_a_line_may_stand_once_on_a_path() -> None:
    reply = Desk().ask(H + "1", line(), line())
    assert isinstance(reply, Refused)
    assert reply.reason == "malformed"


def test_exhausted_goes_before_contended_wherever_they_stand() -> None:
    desk = Desk()
    desk.ask(H + "1", line(hard=100), least=60)
    desk.ask(H + "2", line("org:acme", 10), least=10)
    desk.spent(H + "2", 10, final=True)
    for path in itertools.permutations((line(hard=100), line("org:acme", 10))):
        assert isinstance(desk.ask(H + "3", *path, least=60), Exhausted)


def test_a_report_of_a_lease_nobody_knows_is_told_so() -> None:
    desk = Desk()
    assert desk.spent(H + "7", 5).unknown == (H + "7",)
    assert desk.spent(H + "7", 5, final=True).unknown == (H + "7",)
    assert not desk.log


# --- Safe mode ----------------------------------------------------------------------------------


def test_after_a_rollback_nothing_is_lent_and_holders_claims_are_entered() -> None:
    desk = Desk()
    granted(desk.ask(H + "1"))
    lost = desk.ask(H + "2")
    assert isinstance(lost, Granted)
    # The log loses its last record, and a new writer folds what is left.
    desk.log.pop()
    desk.book = desk.replayed()
    teller = desk.teller()
    teller.rolled_back(2)
    desk.commit(teller)
    refused = desk.ask(H + "3")
    assert isinstance(refused, Refused)
    assert refused.reason == "safe_mode"
    assert desk.spent(H + "2", 6).claim == (H + "2",)
    claim = Claim((line(),), (lost.lines[0].period,), lost.amount)
    reply = desk.report(LeaseReport(H + "2", tokens(6), claim=claim))
    assert not reply.claim
    assert (desk.committed(), desk.held()) == (6, 14 + 20)
    assert desk.operate(Resume(by="op")) == Done(0)
    granted(desk.ask(H + "3"))
    assert state_hash(desk.replayed()) == desk.hash()


# --- Snapshots ----------------------------------------------------------------------------------


def test_a_snapshot_is_the_book() -> None:
    desk = Desk()
    desk.ask(H + "1")
    desk.ask(H + "2", line(), line("org:acme", 10_000, period="rolling:9600/96"))
    desk.spent(H + "1", 900, in_flight=3)
    desk.expire(H + "1")
    desk.spent(H + "9", 0, final=True)
    data = encode_snapshot(desk.book, partition=desk.number, seq=17)
    book, seq = decode_snapshot(data, partition=desk.number)
    assert seq == 17
    assert state_hash(book) == desk.hash()
    # And it goes on as the book does.
    other, desk.book = desk.book, book
    for each in (desk, desk):
        each.spent(H + "2", 12)
        each.pass_time(86_400)
        desk.book, other = other, desk.book
        desk.t_ms -= 86_400_000
    desk.book.n = other.n
    assert desk.hash() == state_hash(other)


@pytest.mark.parametrize("at", [0, 5, -1])
def test_a_damaged_snapshot_is_refused(at: int) -> None:
    desk = Desk()
    desk.ask(H + "1")
    data = bytearray(encode_snapshot(desk.book, partition=desk.number, seq=1))
    data[at] ^= 0x41
    with pytest.raises(BadSnapshot):
        decode_snapshot(bytes(data), partition=desk.number)
    with pytest.raises(BadSnapshot):
        decode_snapshot(bytes(data[:-3]), partition=desk.number)
