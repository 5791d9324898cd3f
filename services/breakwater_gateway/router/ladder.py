"""The ladder: what answers when a model's own deployments cannot. One rung after the other, each at most once.

The rungs are declared per model (`ladder: [cache, simple_model:fast, static, error]`); `primary` stands above
them all and `error` below. Given why the request's plan gave up and what may still be spent, `next` names the
rung to try. With the budget or the time gone only rungs that cost neither are open. The ladder of a simple
model is not walked, so nothing loops.
"""

from typing import Final, assert_never

from breakwater_gateway.config.model import Model, Rung, RungKind
from breakwater_protocol import failures as f
from breakwater_protocol import headers as h

ERROR: Final = Rung("error")

KINDS: Final[frozenset[str]] = frozenset({"cache", "stale", "simple_model", "static", "error"})
_BY_NAME: Final = "simple_model:"
OFF: Final[frozenset[str]] = frozenset()
"""What `breakwater-ladder: off` comes to."""


def read_ladder(text: str) -> frozenset[str] | None:
    """Of the header `breakwater-ladder`: the rungs that may answer, by kind or as `simple_model:<model>`; None
    when it says nothing known."""
    words = [word.strip(" \t") for word in text.split(",")]
    words = [word if word.startswith(_BY_NAME) else word.lower() for word in words]
    if words in (["off"], ["primary"]):
        return OFF
    kinds = frozenset(words) - {"primary"}
    known = all(kind in KINDS or kind.startswith(_BY_NAME) for kind in kinds)
    return kinds if kinds and known else None


def rungs_of(declared: tuple[Rung, ...]) -> tuple[Rung, ...]:
    """The ladder in full: `cache` is a fresh answer and then a stale one, and `error` is always last."""
    found: list[Rung] = []
    for rung in declared:
        if rung.kind == "error":
            break
        found.append(rung)
        if rung.kind == "cache" and Rung("stale") not in declared:
            found.append(Rung("stale"))
    return (*found, ERROR)


def narrowed(
    rungs: tuple[Rung, ...], asked: frozenset[str] | None
) -> tuple[Rung, ...] | f.InvalidRequest:
    """Only the kinds asked for; a kind that the model's ladder does not have is refused, not ignored."""
    if asked is None:
        return rungs
    missing = sorted(asked.difference(*map(_called, rungs)))
    if missing:
        has = ", ".join(dict.fromkeys(rung.kind for rung in rungs))
        return f.InvalidRequest(
            f"the header {h.LADDER} asks for {missing[0]}, which the ladder of this model does not"
            f" have: it has {has}",
            param=h.LADDER,
        )
    if "cache" in asked:
        asked |= {"stale"}
    return (*(r for r in rungs if _called(r) & asked and r.kind != "error"), ERROR)


def _called(rung: Rung) -> frozenset[str]:
    return frozenset({rung.kind, f"{_BY_NAME}{rung.model}"} if rung.model else {rung.kind})


def walks(failure: f.Failure) -> bool:
    """Whether anything below may answer instead. What the caller did wrong, or refused itself, stays an error,
    and so does what a provider's safety system or the model's own policy has decided."""
    match failure:
        case (
            f.RateLimited()
            | f.QuotaExhausted()
            | f.RequestOverLimit()
            | f.KeyRejected()
            | f.KeyForbidden()
            | f.ModelNotFound()
            | f.Overloaded()
            | f.ServerError()
            | f.ConnectFailed()
            | f.FirstTokenTimeout()
            | f.IdleTimeout()
            | f.SlowStream()
            | f.TotalTimeout()
            | f.StreamCut()
            | f.MalformedAnswer()
            | f.MalformedToolCall()
            | f.BudgetExhausted()
            | f.TooDear()
            | f.WorkerBusy()
            | f.WorkerLost()
            | f.NoDeployment()
        ):
            return True
        case (
            f.ContextLength()
            | f.ContentFiltered()
            | f.InvalidRequest()
            | f.PayloadTooLarge()
            # Somebody's rate, or a budget that others hold just now: waiting helps, and for how long is told.
            | f.BudgetContended()
            | f.CallerUnauthenticated()
            | f.CallerForbidden()
            | f.UnknownModel()
            | f.Cancelled()
            | f.NotCached()
            | f.Internal()
        ):
            return False
        case _:
            assert_never(failure)


def foot(cause: f.Failure, model: Model) -> f.Failure:
    """The honest error at the foot of a declared ladder: 503 and when to come back, where the cause was the
    provider's doing (502 and its kin); the caller's own fault, a budget or a deadline stays what it is."""
    if f.spec(cause).status != 502 and not isinstance(cause, f.FirstTokenTimeout):
        return cause
    wait_s = f.retry_after_s(cause) or model.breaker.open_s
    return f.NoDeployment(
        f"no rung of the ladder could answer; it was walked because of: {cause.message[:300]}",
        retry_after_s=wait_s,
    )


class Ladder:
    """Where one request stands. `cause` is the failure that took it off its own deployments."""

    __slots__ = ("_at", "_rungs", "_spent", "cause", "skipped")

    def __init__(self, rungs: tuple[Rung, ...]) -> None:
        self._rungs = rungs
        self._at = 0
        self._spent = False
        self.cause: f.Failure | None = None
        self.skipped: list[tuple[RungKind, str]] = []
        """Rungs that were passed by, and why."""

    @property
    def declared(self) -> bool:
        """The model has rungs below its own deployments."""
        return any(rung.kind != "error" for rung in self._rungs)

    @property
    def simple_models(self) -> int:
        """Calls of the envelope to keep for the rungs that make one."""
        return sum(rung.kind == "simple_model" for rung in self._rungs)

    @property
    def spent(self) -> bool:
        """A budget is used up: what costs something is closed."""
        return self._spent

    def next(self, failure: f.Failure, *, calls: int, chat: bool) -> Rung:
        """The rung to try now. `calls`: how many may still be made in what is left of the time. `chat`: the
        caller wants text; vectors are neither simple nor written down."""
        if self.cause is None:
            self.cause = failure
            if not walks(failure):
                self._at = len(self._rungs)
        if isinstance(failure, f.BudgetExhausted | f.BudgetContended):
            self._spent = True
        while self._at < len(self._rungs):
            rung = self._rungs[self._at]
            self._at += 1
            why = self._closed(rung, calls, chat=chat)
            if not why:
                return rung
            self.skipped.append((rung.kind, why))
        return ERROR

    def _closed(self, rung: Rung, calls: int, *, chat: bool) -> str:
        if rung.kind in {"simple_model", "static"} and not chat:
            return "no_text"
        if rung.kind == "simple_model":
            if self._spent:
                return "budget"
            if calls < 1:
                return "envelope"
        return ""
