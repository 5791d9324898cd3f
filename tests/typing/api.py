"""What must and must not type-check. mypy reads this file; nothing runs it.

Each `type: ignore[code]` is a claim: strict mode fails when the line beneath it becomes legal.
"""

from typing import assert_type

from breakwater_protocol import (
    AnswerInfo,
    ChatStream,
    Chunk,
    Client,
    Completion,
    Embeddings,
    Heard,
    ModelEntry,
    Subject,
    Subjects,
)
from breakwater_protocol.commands import Cancel
from breakwater_protocol.events import Alert, BreakerChanged
from breakwater_protocol.failures import (
    BudgetContended,
    BudgetExhausted,
    Failure,
    NoDeployment,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    ServerError,
    WorkerBusy,
)

subjects = Subjects()
alert = Alert(kind="auth", message="refused", at=0.0)
cancel = Cancel(request="r")


def a_subject_carries_one_type() -> None:
    assert_type(subjects.alert, Subject[Alert])
    assert_type(subjects.alert.decode(b""), Alert)
    assert_type(subjects.health.decode(b""), BreakerChanged)
    assert_type(subjects.alert.encode(alert), bytes)
    subjects.alert.encode(cancel)  # type: ignore[arg-type]
    subjects.cancel.encode(alert)  # type: ignore[arg-type]
    subjects.cancel.encode({"request": "r"})  # type: ignore[arg-type]
    subjects.alert.at(7)  # type: ignore[arg-type]


def messages_are_frozen() -> None:
    alert.kind = "other"  # type: ignore[misc]


def a_state_is_one_of_three(changed: BreakerChanged) -> None:
    if changed.state == "ajar":  # type: ignore[comparison-overlap]
        raise AssertionError


def a_failure_s_wait_is_known_only_once_its_kind_is(failure: Failure) -> float | None:
    failure.retry_after_s  # type: ignore[union-attr] # noqa: B018 - the claim
    match failure:
        case (
            RateLimited()
            | QuotaExhausted()
            | Overloaded()
            | ServerError()
            | BudgetExhausted()
            | BudgetContended()
            | WorkerBusy()
            | NoDeployment()
        ):
            return failure.retry_after_s
        case _:
            return None


async def the_client_answers_in_types(client: Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    stream = client.chat(model="m", messages=messages, temperature=0, user="u", priority="batch")
    assert_type(stream, ChatStream)
    async for chunk in stream:
        assert_type(chunk, Chunk)
    assert_type(stream.info, AnswerInfo)
    answer = await client.complete(model="m", messages=messages, tools=[{"type": "function"}])
    assert_type(answer, Completion)
    assert_type(answer.text, str)
    assert_type(await client.embed(model="e", input=["a"]), Embeddings)
    assert_type(await client.embed(model="e", input=[[1, 2]]), Embeddings)
    assert_type(await client.models(), tuple[ModelEntry, ...])
    async for heard in client.listen("bw.v1.evt.>"):
        assert_type(heard, Heard)


async def the_client_refuses_what_is_misspelt(client: Client) -> None:
    client.chat("m", [])  # type: ignore[call-arg]
    client.chat(model="m")  # type: ignore[call-arg]
    client.chat(model="m", messages="hello")  # type: ignore[arg-type]
    client.chat(model="m", messages=[], temprature=0.5)  # type: ignore[call-arg]
    client.chat(model="m", messages=[], timeout_s="10s")  # type: ignore[arg-type]
    client.chat(model="m", messages=[], priority="urgent")  # type: ignore[arg-type]
    await client.embed(model="e", input=[0.5])  # type: ignore[arg-type]
    async for chunk in client.complete(model="m", messages=[]):  # type: ignore[attr-defined]
        print(chunk)  # noqa: T201 - never runs
