"""What single steps of the request path cost: `uv run python -m ops.bench.parts`, µs of CPU each.

The smallest of several batches is printed: noise of a shared machine only ever adds.
"""

import json
import re
import time
from collections.abc import Callable
from typing import Final

import msgspec
from ops.bench.wire import COUNTER, body

from breakwater_protocol.chat import ChatRequest, Usage
from breakwater_protocol.commands import Finished, Work, WorkReply
from breakwater_protocol.events import AttemptFinished, Decision, RequestFinished
from breakwater_protocol.subjects import Subjects, decode_token, encode_token

BATCHES: Final = 7
BATCH_S: Final = 0.05


def cost_us(step: Callable[[], object]) -> float:
    """CPU of one call in µs: the best of `BATCHES` batches of about `BATCH_S` each."""
    calls = 1
    while True:
        begun = time.process_time()
        for _ in range(calls):
            step()
        took = time.process_time() - begun
        if took > BATCH_S / 4:
            break
        calls *= 2
    calls = max(1, int(calls * BATCH_S / took))
    best = took
    for i in range(BATCHES):
        begun = time.process_time()
        for _ in range(calls):
            step()
        took = (time.process_time() - begun) / calls
        best = took if i == 0 else min(best, took)
    return best * 1e6


REQUEST: Final = body().replace(COUNTER, b"000000000001")
USAGE: Final = Usage(input=400, output=180, cache_read=64)
WORK: Final = Work(
    request="01J9ZC8YV6W3T5N0Q4R7S2X1KD",
    attempt=1,
    tenant="default",
    api="chat",
    model="main-model",
    provider_model="gpt-4o",
    deployment="gpt-4o-us",
    target="gpt-4o-us",
    answer_to="_INBOX_edge.8f2c1d.4711",
    body=msgspec.Raw(REQUEST),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    user="u-1842",
    feature="chat",
)
ATTEMPT: Final = AttemptFinished(
    request=WORK.request,
    attempt=1,
    tenant="default",
    model="main-model",
    deployment="gpt-4o-us",
    target="gpt-4o-us",
    provider="openai",
    worker="w-7f3a",
    outcome="ok",
    at=1_760_000_000.25,
    status=200,
    first_token_ms=312.5,
    duration_ms=2210.0,
    usage=USAGE,
    cost_nano_usd=1_234_000,
)
FINISHED: Final = RequestFinished(
    request=WORK.request,
    tenant="default",
    api="chat",
    model="main-model",
    outcome="ok",
    at=1_760_000_000.5,
    router="r-19c2",
    deployment="gpt-4o-us",
    attempts=1,
    duration_ms=2212.0,
    overhead_ms=1.2,
    usage=USAGE,
    decisions=[Decision(step="dispatch", at_ms=0.4, deployment="gpt-4o-us", worker="w-7f3a")],
)


def steps() -> dict[str, Callable[[], object]]:
    subjects = Subjects()
    request = msgspec.json.Decoder(ChatRequest)
    reply = msgspec.json.Decoder(WorkReply)
    encoder = msgspec.json.Encoder()
    work = subjects.work.encode(WORK)
    done = encoder.encode(
        Finished(request=WORK.request, attempt=1, worker="w-7f3a", answered=True, usage=USAGE)
    )
    attempt = subjects.attempt.encode(ATTEMPT)
    token = encode_token("openai/gpt-4.1-mini")
    plain = re.compile(rb'"stream":\s*true')
    return {
        f"decode a chat request of {len(REQUEST)} bytes": lambda: request.decode(REQUEST),
        "… the same with the standard library": lambda: json.loads(REQUEST),
        "look for one field with a pattern": lambda: plain.search(REQUEST),
        "encode a plain token": lambda: encode_token("gpt-4o-us"),
        "encode an escaped token": lambda: encode_token("openai/gpt-4.1-mini"),
        "decode an escaped token": lambda: decode_token(token),
        "a subject of two names": lambda: subjects.attempt.at("gpt-4o-us", "ok"),
        "the names of a subject": lambda: subjects.chat.names("bw.v1.chat.default"),
        "encode Work": lambda: subjects.work.encode(WORK),
        "decode Work": lambda: subjects.work.decode(work),
        "decode a worker's reply": lambda: reply.decode(done),
        "encode AttemptFinished": lambda: subjects.attempt.encode(ATTEMPT),
        "decode AttemptFinished": lambda: subjects.attempt.decode(attempt),
        "encode RequestFinished": lambda: subjects.request.encode(FINISHED),
    }


def main() -> None:
    for name, step in steps().items():
        print(f"{cost_us(step):8.2f} µs  {name}")


if __name__ == "__main__":
    main()
