"""Written answers that are found by what is meant, in virtual time: the rung `static` with embeddings."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from msgspec.structs import replace
from tests.actors.lender import Lender
from tests.actors.stage import ANSWER, SUBJECTS, Caller, Gateway, config, stage
from tests.actors.test_semantic_cache import Chosen
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.cache.embed.embedder import NoVector, Vector
from breakwater_gateway.cache.embed.through_gateway import ThroughGateway
from breakwater_gateway.config import codec
from breakwater_gateway.config.model import (
    Budget,
    Config,
    Embeddings,
    Model,
    Price,
    Rung,
    StaticAnswer,
    StaticAnswers,
)
from breakwater_gateway.runtime.bus import Message, NoResponders
from breakwater_gateway.runtime.service import publish_config
from breakwater_protocol import cache as c
from breakwater_protocol.commands import Cancel

pytestmark = pytest.mark.anyio

TRACK, CANCEL = "Track my delivery", "Cancel my order"
LEFT, DO_NOT = "Has the parcel left yet?", "Don't cancel my order"
FAQ = StaticAnswers(
    (StaticAnswer((TRACK,), "See the tracker."), StaticAnswer((CANCEL,), "It is cancelled."))
)
LOCAL, REMOTE = Embeddings(local="minilm"), Embeddings(model="vec")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def settings(embeddings: Embeddings | None = LOCAL, answers: StaticAnswers = FAQ) -> Config:
    """`m` on a, with written answers below; `vec` on v makes vectors."""
    main = config("a").models["m"]
    vec = config("v").models["m"]
    return Config(
        {
            "m": Model("m", main.deployments, ladder=(Rung("static"),)),
            "vec": Model("vec", vec.deployments),
        },
        static_answers=answers,
        embeddings=embeddings,
    )


class Meant(Chosen):
    """`calls`: what a vector costs is pretended. `broken`: how many times it fails before it works."""

    def __init__(self, *, calls: bool = False, broken: int = 0) -> None:
        super().__init__()
        self.calls = calls
        self.broken = broken
        self.says(TRACK)
        self.says(CANCEL)
        self.says(LEFT, TRACK, 0.9)
        self.says(DO_NOT, CANCEL, 0.98)

    async def embed(
        self,
        text: str,
        tenant: str,
        *,
        max_cost_nano_usd: int | None = None,
        patience_s: float | None = None,
    ) -> Vector | NoVector:
        if self.broken:
            self.broken -= 1
            return "no_embedding"
        return await super().embed(text, tenant)


@asynccontextmanager
async def answering(
    embedder: Meant | None = None, conf: Config | None = None
) -> AsyncIterator[Gateway]:
    async with stage(conf or settings()) as gateway:
        gateway.embedder = embedder or Meant()
        await gateway.add("cache")
        await asyncio.sleep(1)
        yield gateway


async def configured(gateway: Gateway, conf: Config) -> None:
    """Everybody has it, and has done what it takes."""
    await publish_config(gateway.bus, SUBJECTS, codec.encode(conf))
    async with asyncio.timeout(3_600):
        # Decoded in a thread, for which virtual time does not wait.
        while any(gateway.actor(name).config != conf for name in ("router", "cache")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.sleep(1)


async def asked(gateway: Gateway, question: str, *failures: int) -> Caller:
    """Somebody asks, and the model's own deployment fails with these."""
    caller = gateway.ask(messages=[{"role": "user", "content": question}])
    for status in failures or (403,):
        (await gateway.provider.next_call()).reply(status)
    return caller


def text_of(data: bytes) -> str:
    return str(json.loads(data)["choices"][0]["message"]["content"])


def matches(gateway: Gateway) -> list[tuple[str, str, float | None]]:
    (event,) = gateway.requests
    return [
        (d.step, d.reason, d.score)
        for d in event.decisions
        if d.step == "match" or d.deployment == "meaning"
    ]


async def test_what_is_meant_finds_the_written_answer_and_is_said() -> None:
    async with answering() as gateway:
        reply = await (await asked(gateway, LEFT)).reply()
        assert text_of(reply.data) == "See the tracker."
        said = reply.headers
        assert said["breakwater-rung"] == "static"
        assert said["breakwater-match"] == "meaning"
        assert said["breakwater-match-score"] == "0.900"
        assert said["breakwater-cost-usd"] == "0.000000000"
        assert said["breakwater-attempts"] == "1"
        counted = gateway.metrics.counter(
            "breakwater_static_matches_total", model="m", by="meaning"
        )
        assert counted.value == 1
        await asyncio.sleep(0.1)
        ((step, by, score),) = matches(gateway)
        assert (step, by) == ("match", "meaning")
        assert score == pytest.approx(0.9, abs=0.001)


async def test_what_is_near_and_the_opposite_is_not_answered() -> None:
    async with answering() as gateway:
        error = await (await asked(gateway, DO_NOT)).error()
        assert error["status"] == 503
        await asyncio.sleep(0.1)
        assert [(step, by) for step, by, _ in matches(gateway)] == [("match", "none")]


@pytest.mark.parametrize(
    ("question", "answered"), [("track my delivery!", "See the tracker."), (LEFT, None)]
)
async def test_with_nobody_who_knows_the_vectors_words_decide_at_once(
    question: str, answered: str | None
) -> None:
    async with stage(settings()) as gateway:
        caller = await asked(gateway, question)
        began = asyncio.get_running_loop().time()
        reply = await caller.reply()
        assert asyncio.get_running_loop().time() - began < 0.05
        if answered is None:
            assert reply.headers["Nats-Service-Error-Code"] == "503"
        else:
            assert text_of(reply.data) == answered
            assert reply.headers["breakwater-match"] == "words"
        await asyncio.sleep(0.1)
        assert matches(gateway)[0][:2] == ("skip", "no_owner")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"{]", "malformed"),
        (b"\xff", "malformed"),
        (b'{"found":[["Track my delivery",0.99]]}', "malformed"),
        (b'{"found":[{"question":"Track my delivery","similarity":"near"}]}', "malformed"),
        (None, "late"),
    ],
)
async def test_whoever_is_late_or_makes_no_sense_is_not_waited_for(
    said: bytes | None, reason: str
) -> None:
    async with stage(settings()) as gateway:

        def hear(message: Message) -> None:
            if said is not None:
                gateway.bus.publish(message.reply, said)

        await gateway.bus.subscribe(SUBJECTS.cache_written.at(), hear, queue="cache")
        caller = await asked(gateway, "track my delivery!")
        began = asyncio.get_running_loop().time()
        assert text_of((await caller.reply()).data) == "See the tracker."
        assert asyncio.get_running_loop().time() - began < 0.3
        await asyncio.sleep(0.1)
        assert matches(gateway)[0][:2] == ("skip", reason)


async def test_a_caller_who_leaves_while_it_is_looked_for_hears_nothing() -> None:
    embedder = Meant()
    async with answering(embedder) as gateway:
        embedder.late_s = 0.1
        caller = await asked(gateway, LEFT)
        await asyncio.sleep(0.05)
        gateway.bus.publish(SUBJECTS.cancel.at("r1"), SUBJECTS.cancel.encode(Cancel("r1")))
        await asyncio.sleep(1)
        assert not caller.all
        assert [event.outcome for event in gateway.requests] == ["cancelled"]


async def test_an_embedder_that_fails_first_is_asked_again_until_all_questions_are_known() -> None:
    embedder = Meant(broken=3)
    async with answering(embedder) as gateway:
        first = await (await asked(gateway, LEFT)).reply()
        assert first.headers["Nats-Service-Error-Code"] == "503"
        await asyncio.sleep(10)
        second = await (await asked(gateway, LEFT)).reply()
        assert second.headers["breakwater-match"] == "meaning"


async def test_another_configuration_s_questions_are_embedded_anew() -> None:
    embedder = Meant()
    async with answering(embedder) as gateway:
        embedder.says("Is my box under way?", LEFT, 0.99)
        boxes = StaticAnswers((StaticAnswer(("Is my box under way?",), "Look at the map."),))
        await configured(gateway, settings(answers=boxes))
        reply = await (await asked(gateway, LEFT)).reply()
        assert text_of(reply.data) == "Look at the map."
        # And none at all where no ladder comes to them.
        embedder.asked.clear()
        bare = settings()
        bare = replace(bare, models={"m": replace(bare.models["m"], ladder=())})
        await configured(gateway, bare)
        assert embedder.asked == []
        with pytest.raises(NoResponders):
            await gateway.bus.ask(SUBJECTS.cache_written.at(), b"{}", timeout_s=1)


@pytest.mark.parametrize(
    ("calls", "failures", "match", "attempts"),
    [
        # A call of the envelope is left for the vector, and it counts.
        (True, (403,), "meaning", "2"),
        (False, (403,), "meaning", "1"),
        # None is left: what costs nothing is open, the call of a model is not.
        (True, (500, 500, 500), None, "3"),
        (False, (500, 500, 500), "meaning", "3"),
    ],
)
async def test_a_vector_that_takes_a_call_draws_on_the_request_s_envelope(
    calls: bool, failures: tuple[int, ...], match: str | None, attempts: str
) -> None:
    conf = settings(REMOTE if calls else LOCAL)
    embedder = Meant(calls=calls)
    async with answering(embedder, conf) as gateway:
        embedder.asked.clear()
        reply = await (await asked(gateway, LEFT, *failures)).reply()
        assert reply.headers.get("breakwater-match") == match
        assert reply.headers["breakwater-attempts"] == attempts
        assert embedder.asked == ([LEFT] if match else [])


@pytest.mark.parametrize("calls", [True, False])
async def test_with_the_budget_gone_only_a_local_vector_is_made(calls: bool) -> None:
    budgets = (Budget("user", "*", "tokens", 10, "day"),)
    conf = replace(settings(REMOTE if calls else LOCAL), budgets=budgets)
    embedder = Meant(calls=calls)
    async with answering(embedder, conf) as gateway:
        lender = Lender(gateway.bus)
        await lender.listen()
        embedder.asked.clear()
        caller = gateway.ask(
            messages=[{"role": "user", "content": LEFT}], headers={"breakwater-user": "ann"}
        )
        reply = await caller.reply()
        if calls:
            assert reply.headers["Nats-Service-Error-Code"] == "429"
            assert embedder.asked == []
        else:
            assert reply.headers["breakwater-match"] == "meaning"
            assert reply.headers["breakwater-rung-reason"] == "budget_exhausted"
        assert gateway.provider.seen == []


@pytest.mark.parametrize("priced", [True, False])
async def test_a_vector_is_paid_out_of_the_money_of_the_request(priced: bool) -> None:
    conf, price = settings(REMOTE), Price(1_000, 1_000)
    main, vec = (conf.models[name].deployments[0] for name in ("m", "vec"))
    models = {
        "m": replace(conf.models["m"], deployments=(replace(main, price=price),)),
        "vec": replace(
            conf.models["vec"], deployments=(replace(vec, price=price if priced else None),)
        ),
    }
    embedder = Meant(calls=True)
    async with answering(embedder, replace(conf, models=models)) as gateway:
        embedder.asked.clear()
        caller = gateway.ask(
            messages=[{"role": "user", "content": LEFT}],
            max_tokens=10,
            headers={"breakwater-max-cost": "1"},
        )
        (await gateway.provider.next_call()).reply(403)
        reply = await caller.reply()
        # What a model without a price would cost, nobody knows.
        assert reply.headers.get("breakwater-match") == ("meaning" if priced else None)
        assert embedder.asked == ([LEFT] if priced else [])


def vectors(*made: Vector) -> bytes:
    data = [{"index": at, "embedding": each.tolist()} for at, each in enumerate(made)]
    return json.dumps({"data": data, "usage": {"prompt_tokens": 3}}).encode()


async def test_a_model_of_the_gateway_s_own_makes_the_vectors_all_questions_in_one_call() -> None:
    meant = Meant()
    async with stage(settings(REMOTE)) as gateway:
        gateway.embedder = ThroughGateway("vec", gateway.bus, SUBJECTS)
        await gateway.add("cache")
        call = await gateway.provider.next_call()
        assert (call.deployment, call.body["input"]) == ("v", [TRACK, CANCEL])
        # In any order; what is no whole answer is asked for again.
        call.reply(200, vectors(meant.vectors[TRACK]))
        call = await gateway.provider.next_call()
        call.reply(200, vectors(meant.vectors[TRACK], meant.vectors[CANCEL]))
        await asyncio.sleep(1)
        caller = await asked(gateway, LEFT)
        call = await gateway.provider.next_call()
        assert call.body["input"] == LEFT
        await asyncio.sleep(0.15)  # longer than a lookup would bear
        call.reply(200, vectors(meant.vectors[LEFT]))
        reply = await caller.reply()
        assert text_of(reply.data) == "See the tracker."
        await asyncio.sleep(0.1)
        tenants = {event.api: event.tenant for event in gateway.requests if event.model == "vec"}
        assert tenants == {"embeddings": "t"}


async def test_the_nearest_of_another_answer_is_always_told() -> None:
    many = StaticAnswers(
        (
            StaticAnswer(tuple(f"Track my delivery {n}" for n in range(12)), "See the tracker."),
            StaticAnswer((CANCEL,), "It is cancelled."),
        )
    )
    embedder = Meant()
    for question in many.entries[0].questions:
        embedder.says(question, LEFT, 0.9)
    embedder.says(CANCEL, LEFT, 0.8)
    async with answering(embedder, settings(answers=many)) as gateway:
        ask = c.LookWritten("r", "t", LEFT)
        reply = await gateway.bus.ask(
            SUBJECTS.cache_written.at(), SUBJECTS.cache_written.encode(ask), timeout_s=1
        )
        found = json.loads(reply.data)["found"]
        assert len(found) == 9
        assert found[-1]["question"] == CANCEL
        assert found[-1]["similarity"] == pytest.approx(0.8, abs=0.001)
        assert np.all(np.diff([each["similarity"] for each in found]) <= 0)
        # So two answers that are both near are none.
        assert (await (await asked(gateway, LEFT)).error())["status"] == 503


async def test_the_same_answer_goes_out_where_the_model_itself_answers() -> None:
    async with answering() as gateway:
        caller = gateway.ask(messages=[{"role": "user", "content": LEFT}])
        (await gateway.provider.next_call()).reply(200, ANSWER)
        reply = await caller.reply()
        assert reply.data == ANSWER
        assert "breakwater-match" not in reply.headers
