"""The budget ledger: what holders ask its writers, what they answer, and the records of the log.

A writer owns the books of one partition and lends parts of its limits out as leases; a holder (a router)
reserves against leases it holds, without asking anybody, and reports what they have spent. Money is in
whole nano-USD, tokens and requests are whole too. Times that a holder reads are what is left in seconds.

Safety rests on four rules, and on no clock: an amount is lent once, whatever is said twice; reports are
cumulative, so that their order does not matter; a lease that expires counts as spent whole; only its
holder's own final word (or an operator's) gives back what it did not spend.
"""

import hashlib
from typing import Final, Literal

from msgspec import Struct

Scope = Literal["key", "user", "team", "feature", "org", "provider", "model", "global"]
Unit = Literal["nano_usd", "tokens", "requests"]

PARTITIONS: Final = 16
LIMITS_BUCKET: Final = "bw_limits"
"""Operators' limits that hold now, `p3.DIGEST` -> `OperatorLimit`: told by the ledger once its log has them."""
MILLION: Final = 1_000_000
"""Soft thresholds are millionths of the hard limit."""
AMOUNT_MAX: Final = 10**18
"""Of any limit, lease or report; larger is refused. A billion USD; it leaves room below 64 bits."""
PATH_MAX: Final = 32
"""Accounts that one lease debits at most."""
SOFT_MAX: Final = 16

_OF_AN_ORG: Final = frozenset({"key", "user", "team"})


class Account(Struct, frozen=True, order=True):
    """Whom a budget limits. Keys, users and teams belong to an organisation; the other scopes are the
    gateway's own, and their `org` is empty."""

    scope: Scope
    id: str = ""
    """Empty: `global`."""
    org: str = ""

    @property
    def name(self) -> str:
        """`user:alice`, `user:acme/alice`, `org:acme`, `global`: one text for each account, and back."""
        if self.scope == "global":
            return "global"
        if self.scope in _OF_AN_ORG and (self.org or "/" in self.id):
            return f"{self.scope}:{_quote(self.org)}/{self.id}"
        return f"{self.scope}:{self.id}"


def account_named(name: str) -> Account:
    """The account of that name. Raises `ValueError` naming what is wrong with it."""
    if name == "global":
        return Account("global")
    scope, colon, rest = name.partition(":")
    if scope not in _SCOPES or scope == "global" or not colon or not rest:
        known = ", ".join(f"{each}:ID" for each in _SCOPES if each != "global")
        raise ValueError(f"not an account: {name[:80]!r}; accounts are {known} or global")
    org = ""
    if scope in _OF_AN_ORG and "/" in rest:
        quoted, _, rest = rest.partition("/")
        org = quoted.replace("%2F", "/").replace("%25", "%")
    if not rest:
        raise ValueError(f"not an account: {name[:80]!r}; its id is empty")
    return Account(_SCOPES[scope], rest, org)


_SCOPES: Final[dict[str, Scope]] = {
    "key": "key",
    "user": "user",
    "team": "team",
    "feature": "feature",
    "org": "org",
    "provider": "provider",
    "model": "model",
    "global": "global",
}


def _quote(org: str) -> str:
    return org.replace("%", "%25").replace("/", "%2F")


def partition(account: Account) -> int:
    """Which partition's writer has this account's books: all of one organisation share one.

    Features, providers, models and `global` are everybody's, so each has one by its own name. A path
    that spans partitions needs a lease in each; a reservation then debits all of them or none.
    """
    place = f"org:{account.org}" if account.scope in _OF_AN_ORG else account.name
    digest = hashlib.blake2b(place.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % PARTITIONS


def partition_token(number: int) -> str:
    """The partition in subjects: `p3`."""
    return f"p{number}"


class Amount(Struct, frozen=True, omit_defaults=True):
    """So much of each unit. A lease has no amount of a unit that nothing on its path limits."""

    nano_usd: int = 0
    tokens: int = 0
    requests: int = 0


class Limit(Struct, frozen=True, omit_defaults=True):
    """What the configuration (or a key) says of one account, unit and period."""

    hard: int
    soft: tuple[int, ...] = (800_000,)
    """Ascending, in millionths of `hard`."""
    revision: int = 0
    """Of wherever the limit stands: of two holders' limits for one account the later is right. The writer
    makes the generation from it: it grows when `hard` or `soft` really change."""


class Line(Struct, frozen=True, omit_defaults=True):
    """One line of the books that a lease debits."""

    account: str
    """`Account.name`."""
    unit: Unit
    period: str
    """`hour@ZONE`, `day@ZONE`, `week@ZONE`, `month@ZONE`, `rolling:SECONDS/SLOTS` or `ever`. Which of
    them it is now, the writer says."""
    limit: Limit


class LeaseAsk(Struct, frozen=True, omit_defaults=True):
    """Lend me something of all these lines at once, or of none."""

    lease: str
    """`<holder>/<incarnation>/<k>`: the incarnation a number that grows with each start of the holder,
    `k` one that grows with each lease. Asked again after no answer, it is the same lease."""
    path: tuple[Line, ...]
    """All of this partition."""
    min: Amount
    """What one request needs; less is of no use."""
    want: Amount
    """About two seconds of use; the writer lends less as the limit comes near, down to `min`."""
    seen_seq: int = 0
    """The largest sequence that this partition's writer ever told this holder."""


class LineState(Struct, frozen=True, omit_defaults=True):
    """One line of a lease's path as the writer sees it, in the order of the path."""

    period: str
    """The period's key: `d:2026-11-23@Europe/Berlin`."""
    available: int
    """Left of the limit after this grant."""
    limit: int
    """The hard limit that holds, an operator's override included."""
    ends_in_s: float
    """Until the period ends; no reservation may be taken from the lease after that. Infinity is -1."""
    generation: int = 1


class Granted(Struct, frozen=True, omit_defaults=True, tag="granted", tag_field="reply"):
    lease: str
    amount: Amount
    seq: int
    """Of the record in the log."""
    lines: tuple[LineState, ...]
    expires_s: float
    """Without a report for so long the lease counts as spent whole, until its final report."""
    state: Literal["open", "expired"] = "open"
    """`expired`: granted before, and expired since; it may be used up and then closed."""


class Exhausted(Struct, frozen=True, omit_defaults=True, tag="exhausted", tag_field="reply"):
    """What the request needs is more than the limit less what is spent: waiting does not help before
    the period ends."""

    account: str
    unit: Unit
    period: str
    limit: int
    remaining: int
    """The limit less what is spent; never below zero here."""
    resets_in_s: float
    """Until enough may be there again; -1 if never."""
    seq: int = 0


class Contended(Struct, frozen=True, omit_defaults=True, tag="contended", tag_field="reply"):
    """It fits once calls in flight have settled: ask again."""

    account: str
    unit: Unit
    period: str
    retry_ms: int
    seq: int = 0


class NotLeader(Struct, frozen=True, omit_defaults=True, tag="not_leader", tag_field="reply"):
    """Another writer has this partition, or none yet: ask again."""

    retry_ms: int = 100


class Refused(Struct, frozen=True, omit_defaults=True, tag="refused", tag_field="reply"):
    """`malformed`: not an ask, or absurd; `wrong_partition`; `unknown_zone`; `stale_lease`: closed, or of
    a life that ended; `safe_mode`: the log was rolled back, an operator has to look; `full`: the books
    hold as many lines or leases as they may; `unknown`: what the command is about is not there."""

    reason: Literal[
        "malformed",
        "wrong_partition",
        "unknown_zone",
        "stale_lease",
        "safe_mode",
        "full",
        "unknown",
    ]
    message: str


LeaseReply = Granted | Exhausted | Contended | NotLeader | Refused


class Claim(Struct, frozen=True, omit_defaults=True):
    """What a lease was when it was granted: for a writer whose log has lost the grant."""

    path: tuple[Line, ...]
    periods: tuple[str, ...]
    """Keys, in the order of the path."""
    amount: Amount


class LeaseReport(Struct, frozen=True, omit_defaults=True):
    """One lease so far. Cumulative: said twice or out of order it changes nothing."""

    lease: str
    cum_spent: Amount = Amount()
    in_flight_max: Amount = Amount()
    """Reserved for calls whose outcome is not known, at their maximum."""
    final: bool = False
    """The holder's last word: it will spend nothing more. What is in flight must be in `cum_spent` then."""
    claim: Claim | None = None
    """Only when the writer asked for it."""


class Reports(Struct, frozen=True, omit_defaults=True):
    """About once a second from every holder, and at the end of a lease; it keeps the leases alive."""

    reports: tuple[LeaseReport, ...]
    seen_seq: int = 0


class Reported(Struct, frozen=True, omit_defaults=True, tag="reported", tag_field="reply"):
    """Everything is in the log. Until then a holder says it again."""

    seq: int
    expired: tuple[str, ...] = ()
    """Leases that count as spent whole: close them soon."""
    unknown: tuple[str, ...] = ()
    """Leases the books do not have, for instance closed long ago: forget them."""
    claim: tuple[str, ...] = ()
    """Leases to report again with their `claim`: the log was rolled back."""


ReportReply = Reported | NotLeader | Refused


# --- Questions and commands of operators ---------------------------------------------------------


class Query(Struct, frozen=True, omit_defaults=True):
    """What the books say. Empty texts match everything."""

    account: str = ""
    leases: bool = False
    hash: bool = False
    """Also the hash of the whole state, for auditors."""


class BudgetLine(Struct, frozen=True, omit_defaults=True):
    account: str
    unit: Unit
    period: str
    """As configured."""
    key: str
    """The present period's key."""
    limit: int
    committed: int
    """Spent, and expired leases at their maximum."""
    held: int
    """Lent out and not reported as spent."""
    available: int
    """Limit less both; below zero after a breach or a lowered limit."""
    generation: int
    soft: tuple[int, ...] = ()
    crossed: tuple[int, ...] = ()
    resets_in_s: float = -1
    override: bool = False
    """The limit is an operator's, not the configuration's."""


class LeaseLine(Struct, frozen=True, omit_defaults=True):
    lease: str
    state: Literal["open", "expired"]
    amount: Amount
    spent: Amount
    in_flight_max: Amount
    lines: tuple[str, ...]
    """Account, unit and period's key of each debited line, separated by blanks."""
    reported_s_ago: float = -1


class Books(Struct, frozen=True, omit_defaults=True, tag="books", tag_field="reply"):
    partition: int
    seq: int
    writer: str
    lines: tuple[BudgetLine, ...] = ()
    leases: tuple[LeaseLine, ...] = ()
    safe: bool = False
    hash: str = ""
    """Of the state that the log up to `seq` folds to."""
    more: bool = False
    """There was no room for all."""


QueryReply = Books | NotLeader | Refused


class SetLimit(Struct, frozen=True, omit_defaults=True, tag="set_limit", tag_field="command"):
    """An operator's limit, before the configuration's until it is taken back (`hard` None)."""

    account: str
    unit: Unit
    period: str
    hard: int | None
    by: str
    why: str = ""


class OperatorLimit(Struct, frozen=True, omit_defaults=True):
    """An operator's limit that holds, for routers: what no rule of theirs names they reserve nothing of."""

    account: str
    unit: Unit
    period: str
    hard: int


class Release(Struct, frozen=True, omit_defaults=True, tag="release", tag_field="command"):
    """Close a lease at what it has reported as spent and in flight. For a holder that is gone for good:
    one that lives could spend what is given back."""

    lease: str
    by: str
    why: str = ""


class Correct(Struct, frozen=True, omit_defaults=True, tag="correct", tag_field="command"):
    """Add to (or take from) what a line has committed in its present period."""

    account: str
    unit: Unit
    period: str
    delta: int
    by: str
    why: str = ""


class Resume(Struct, frozen=True, omit_defaults=True, tag="resume", tag_field="command"):
    """Leave safe mode: an operator has compared the claims with the books."""

    by: str
    why: str = ""


class Operate(Struct, frozen=True, omit_defaults=True):
    change: SetLimit | Release | Correct | Resume


class Done(Struct, frozen=True, omit_defaults=True, tag="done", tag_field="reply"):
    seq: int


CommandReply = Done | NotLeader | Refused


# --- The log -------------------------------------------------------------------------------------


class OpenLine(Struct, frozen=True, omit_defaults=True, tag="line", tag_field="op"):
    """A new line of the books; later operations name it by its number, from 0 and never used again."""

    number: int
    account: str
    unit: Unit
    period: str


class SetLineLimit(Struct, frozen=True, omit_defaults=True, tag="limit", tag_field="op"):
    """What holders' limits say from now on."""

    line: int
    hard: int
    soft: tuple[int, ...]
    revision: int


class Override(Struct, frozen=True, omit_defaults=True, tag="override", tag_field="op"):
    line: int
    hard: int | None
    by: str
    why: str = ""


class Grant(Struct, frozen=True, omit_defaults=True, tag="grant", tag_field="op"):
    lease: str
    lines: tuple[int, ...]
    periods: tuple[str, ...]
    amount: Amount
    adopted: bool = False
    """Entered from its holder's claim, after the log lost the grant."""


class Spend(Struct, frozen=True, omit_defaults=True, tag="spend", tag_field="op"):
    lease: str
    spent: Amount
    in_flight: Amount = Amount()


class Close(Struct, frozen=True, omit_defaults=True, tag="close", tag_field="op"):
    """By the holder, or with `by` an operator; also of a lease that was never granted, so that an ask
    which comes late is refused."""

    lease: str
    spent: Amount
    by: str = ""
    why: str = ""


class Expire(Struct, frozen=True, omit_defaults=True, tag="expire", tag_field="op"):
    lease: str


class Adjust(Struct, frozen=True, omit_defaults=True, tag="adjust", tag_field="op"):
    line: int
    delta: int
    by: str
    why: str = ""


class Exhaust(Struct, frozen=True, omit_defaults=True, tag="exhaust", tag_field="op"):
    """A line refused for the first time under this generation in this period."""

    line: int


class Safe(Struct, frozen=True, omit_defaults=True, tag="safe", tag_field="op"):
    """The log was rolled back: a holder has seen `seen_seq`. With `by` an operator ends it."""

    seen_seq: int
    on: bool = True
    by: str = ""
    why: str = ""


class Lead(Struct, frozen=True, omit_defaults=True, tag="lead", tag_field="op"):
    """A writer takes over."""

    writer: str


Op = (
    OpenLine
    | SetLineLimit
    | Override
    | Grant
    | Spend
    | Close
    | Expire
    | Adjust
    | Exhaust
    | Safe
    | Lead
)


class Record(Struct, frozen=True, omit_defaults=True):
    """One entry of the log: everything that one append decided. An empty one lets time pass."""

    n: int
    """1, 2, 3, …: a hole means that the log is not whole."""
    id: str
    """Of this append: a writer whose answer was lost knows its own record by it."""
    t_ms: int
    """Unix milliseconds, never less than the last record's."""
    ops: tuple[Op, ...] = ()
