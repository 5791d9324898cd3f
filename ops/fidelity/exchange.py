"""What the checks of all APIs share: how a request that is refused counts, and how an answer is opened."""

from collections.abc import Callable
from typing import Final

from ops.fidelity.equivalence import Json, difference, parse
from ops.fidelity.finding import Finding, Findings, excused, wrong
from ops.fidelity.rows import Row

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_protocol import failures as f

REFUSED_TOO: Final = "a request that the provider refused as well is refused"
NO_MODEL: Final = "a request that names no model is refused: there is nothing to choose by"
FAILED_INSIDE: Final = "a failure inside an answer of status 200 is told"


def refusal(row: Row, error: BadRequest) -> Finding:
    """A dialect may refuse what the provider refused, and what names no model."""
    if 400 <= row.status < 500 and row.status not in {401, 403, 429}:
        return excused(REFUSED_TOO)
    if error.param == "model" and _names_no_model(row.request_body):
        return excused(NO_MODEL)
    return wrong("request: refused, but the provider took it", error)


def _names_no_model(body: bytes) -> bool:
    try:
        found = parse(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and not found.get("model")


def compared(what: str, ours: Json, theirs: Json) -> Findings:
    """One finding where two values differ."""
    found = difference(ours, theirs)
    if found is not None:
        yield wrong(f"{what}: {found.where}", found.detail)


def nothing_dropped(call: n.Call) -> Findings:
    if call.dropped:
        yield wrong(
            "request: names as dropped what its own dialect can say", ", ".join(call.dropped)
        )


def opened(
    answer: n.Answer | f.Failure, failed: Callable[[], bool]
) -> tuple[n.Answer | None, list[Finding]]:
    """The answer, unless it is a failure; a failure must be one that the body holds."""
    if isinstance(answer, n.Answer):
        if failed():
            return None, [wrong("answer: the failure inside it is not told")]
        return answer, []
    if failed():
        return None, [excused(FAILED_INSIDE)]
    return None, [wrong(f"answer: taken for {type(answer).__name__}", answer)]
