"""The steps of the tour: each does one thing that a gateway is for, and proves that it happened."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from msgspec import Struct

from breakwater_gateway.cli.demo.place import Place, TourFailed
from breakwater_protocol import GatewayError
from breakwater_protocol.answers import AnswerInfo

HERD: Final = 20
SPENDING_MAX: Final = 400


class Step(Struct, frozen=True):
    title: str
    tells: str
    """What is about to be shown, for people."""
    show: Callable[[Place], Awaitable[list[str]]]
    """The proof, a line each. Raises `TourFailed`."""


def check(true: object, what: str) -> None:
    """Raises `TourFailed` that says what should have been so."""
    if not true:
        raise TourFailed(f"expected: {what}")


async def ask(place: Place, model: str, question: str, *, user: str = "") -> tuple[str, AnswerInfo]:
    messages = [{"role": "user", "content": question}]
    client = place.client
    if user:
        answer = await client.complete(model=model, messages=messages, max_tokens=600, user=user)
    else:
        answer = await client.complete(model=model, messages=messages)
    return answer.text, answer.info


async def a_request(place: Place) -> list[str]:
    text, info = await ask(place, "main-model", "Hello")
    check(text, "an answer")
    check((info.rung, info.attempts) == ("primary", 1), "one attempt on the primary rung")
    words = 0
    question = [{"role": "user", "content": "Hello again"}]
    async with place.client.chat(model="main-model", messages=question) as stream:
        async for chunk in stream:
            words += sum(bool(choice.delta.content) for choice in chunk.choices)
    check(words > 1, "a stream of several pieces")
    return [
        f"answered by {info.deployment} in {info.attempts} attempt, {info.overhead_ms:.2f} ms of ours",
        f"the same as a stream: {words} pieces, each straight from the worker to us",
    ]


async def a_failover(place: Place) -> list[str]:
    await place.script("main", faults=[{"class": "server_error", "times": 1}])
    _, info = await ask(place, "main-model", "Are you there?")
    await place.script("main")
    check(info.deployment == "spare", "the second deployment to answer")
    check(info.attempts == 2, "two attempts")
    return [
        f"main answered 500, {info.deployment} answered: {info.attempts} attempts, no error seen"
    ]


async def a_breaker(place: Place) -> list[str]:
    await place.script("shaky", faults=[{"class": "server_error"}], first_token_ms=50)
    for number in range(3):
        await ask(place, "shaky-model", f"Question {number}")
    await place.until(lambda: "open" in place.changes("shaky"), "the breaker to open")
    opened_at = await place.calls("shaky")
    _, info = await ask(place, "shaky-model", "Who answers now?")
    check(info.deployment == "steady", "the steady deployment while the breaker is open")
    check(await place.calls("shaky") == opened_at, "no call at a target that is open")

    await place.script("shaky", first_token_ms=50)
    await place.until(lambda: "half_open" in place.changes("shaky"), "the breaker to be probed")
    before = await place.calls("shaky")
    await asyncio.gather(*(ask(place, "shaky-model", f"Herd {n}") for n in range(HERD)))
    probes = await place.calls("shaky") - before
    check(probes == 1, f"one probe for {HERD} requests, not {probes}")

    async def recovered() -> None:
        number = 0
        while "closed" not in place.changes("shaky"):
            number += 1
            await ask(place, "shaky-model", f"Recovery {number}")
            await asyncio.sleep(0.02)

    try:
        async with asyncio.timeout(15):
            await recovered()
    except TimeoutError:
        raise TourFailed("expected: the breaker to close after its probes") from None
    change = next(c for c in place.breakers if c.target == "shaky" and c.state == "open")
    return [
        f"opened by {change.cause} after {change.evidence.consecutive} failures in a row, said on the bus",
        f"{HERD} requests at once while it is half open: {probes} probe, all {HERD} answered",
        "closed again: " + " -> ".join(place.changes("shaky")),
    ]


async def coalesced(place: Place) -> list[str]:
    await place.script("kept", first_token_ms=300)
    before = await place.calls("kept")
    answers = await asyncio.gather(
        *(ask(place, "kept-model", "The same question") for _ in range(HERD))
    )
    calls = await place.calls("kept") - before
    check(calls == 1, f"one call for {HERD} identical requests, not {calls}")
    check(len({text for text, _ in answers}) == 1, "the same answer for everybody")
    shared = sum(info.cache == "coalesced" for _, info in answers)
    check(shared == HERD - 1, f"{HERD - 1} answers marked coalesced, not {shared}")
    return [f"{HERD} identical requests at once: {calls} call, {shared} of them coalesced"]


async def exact_hit(place: Place) -> list[str]:
    before = await place.calls("kept")
    _, info = await ask(place, "kept-model", "The same question")
    check(info.cache == "hit", f"an exact hit, not {info.cache!r}")
    check(await place.calls("kept") == before, "no call for a hit")
    return [f"asked once more: breakwater-cache {info.cache}, cost {info.cost_usd:g} USD, no call"]


async def semantic_hit(place: Place) -> list[str]:
    await ask(place, "clever-model", "How do I change the password of an account?")
    before = await place.calls("clever")

    # The index learns of an answer after its caller has it.
    await asyncio.sleep(0.5)
    _, info = await ask(
        place, "clever-model", "Please, how do I change the password of an account?"
    )
    check(info.cache == "semantic", f"a semantic hit, not {info.cache!r}")
    check(await place.calls("clever") == before, "no call for a hit")
    _, other = await ask(place, "clever-model", "How do I delete the password of an account?")
    check(other.cache == "miss", f"a miss for another question, not {other.cache!r}")
    similarity = info.similarity or 0.0
    return [
        f"the question in other words: {info.cache} hit, similarity {similarity:.3f}",
        "one word that matters is another ('delete'): a miss, as it must be",
    ]


async def a_budget(place: Place) -> list[str]:
    await place.script("paid", tokens=500)
    before = await place.calls("paid")
    served = 0
    refusal: GatewayError | None = None
    for number in range(SPENDING_MAX):
        try:
            await ask(place, "paid-model", f"Spend a little, {number}", user="visitor")
        except GatewayError as error:
            refusal = error
            break
        served += 1
    if refusal is None:
        raise TourFailed(f"expected: the hard limit within {SPENDING_MAX} requests")
    check(refusal.code == "budget_exhausted", f"budget_exhausted, not {refusal.code}")
    check(refusal.should_retry is False, "x-should-retry: false")
    calls = await place.calls("paid") - before
    check(calls == served, f"as many calls as answers: {calls} and {served}")
    mine = [event for event in place.budgets if "visitor" in event.account]
    soft = await place.until(
        lambda: [e for e in place.budgets if "visitor" in e.account and e.threshold],
        "the soft limit's event",
    )
    check(len(soft) == 1, f"one event for the soft limit, not {len(soft)}")
    check(all(e.committed + e.held <= e.limit for e in mine), "books within the limit at any time")
    return [
        f"{served} requests for 0.01 USD; the soft limit at half of it said once on the bus",
        f"then {refusal.status} {refusal.code}: {refusal.message}",
        f"the provider saw {calls} calls: not one beyond the limit",
    ]


async def the_ladder(place: Place) -> list[str]:
    shown: list[str] = []

    async def rung(question: str, wanted: str) -> None:
        text, info = await ask(place, "laddered-model", question)
        check(info.rung == wanted, f"the rung {wanted}, not {info.rung} ({text[:40]!r})")
        shown.append(f"{wanted:<12} {question!r} -> {text[:48]!r}")

    await place.script("main")
    await rung("What is a breakwater?", "primary")
    await asyncio.sleep(1.3)  # its entry is past its time, but kept for the day that it is needed
    await place.script("main", faults=[{"class": "server_error"}])
    await rung("What is a breakwater?", "stale")
    await rung("What is a pier?", "simple_model")
    await place.script("small", faults=[{"class": "server_error"}])
    await rung("When are you open?", "static")
    try:
        await ask(place, "laddered-model", "Who wrote the Iliad?")
    except GatewayError as error:
        check(error.status == 503, f"503, not {error.status}")
        check(error.retry_after_s, "a time to come back")
        shown.append(
            f"{'error':<12} 'Who wrote the Iliad?' -> {error.status} {error.code}, "
            f"retry after {error.retry_after_s:g} s"
        )
    else:
        raise TourFailed("expected: an honest error at the foot of the ladder")
    finally:
        await place.script("main")
        await place.script("small")
    return shown


async def a_killed_worker(place: Place) -> list[str]:
    await place.script("victim", tokens=400, tokens_per_s=100)
    loop = asyncio.get_running_loop()
    killed_at = 0.0
    pieces = 0
    question = [{"role": "user", "content": "A long story"}]
    info: AnswerInfo | None = None
    async with place.client.chat(model="victim-model", messages=question) as stream:
        async for chunk in stream:
            pieces += sum(bool(choice.delta.content) for choice in chunk.choices)
            if pieces >= 20 and not killed_at and place.victim is not None:
                place.victim.kill()
                killed_at = loop.time()
        info = stream.info
    check(killed_at, "the worker to be killed in the middle")
    after_s = loop.time() - killed_at
    check(info.partial, "an answer marked partial")
    check(after_s < 5, f"an end soon after the kill, not {after_s:.1f} s")
    told = f"the caller was told {after_s:.2f} s later, breakwater-partial: {info.partial}"
    return [f"kill -9 after {pieces} pieces: {told}"]


STEPS: Final = (
    Step("A request", "A logical model, whole and as a stream, over NATS.", a_request),
    Step("Failover", "The first deployment fails; the caller does not notice.", a_failover),
    Step(
        "A breaker",
        "A deployment keeps failing, is left alone, probed once, and taken back.",
        a_breaker,
    ),
    Step("Coalescing", "Identical requests in flight share one call.", coalesced),
    Step("Exact cache", "The same question again costs nothing.", exact_hit),
    Step(
        "Semantic cache",
        "The same question in other words, and one that only looks alike.",
        semantic_hit,
    ),
    Step("A budget", "A user's budget reaches its soft limit, then its hard one.", a_budget),
    Step("The ladder", "Everything fails, a rung at a time.", the_ladder),
    Step("A killed worker", "kill -9 in the middle of a stream.", a_killed_worker),
)


async def walked(place: Place) -> AsyncIterator[tuple[Step, list[str]]]:
    """Each step with its proof. Raises `TourFailed` with the step's title."""
    for step in STEPS:
        try:
            async with asyncio.timeout(30):
                lines = await step.show(place)
        except TimeoutError:
            raise TourFailed(f"{step.title}: not within 30 s") from None
        except GatewayError as error:
            raise TourFailed(f"{step.title}: the gateway answered {error.status} {error}") from None
        except TourFailed as error:
            raise TourFailed(f"{step.title}: {error}") from None
        yield step, lines
