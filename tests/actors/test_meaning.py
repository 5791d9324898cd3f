"""Asking the owner of meanings: nothing waits for long, and nobody waits for one that does not answer at all."""

import asyncio

import msgspec
import pytest
from tests.actors.stage import SUBJECTS, quiet_log
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config
from breakwater_gateway.router.desks.meaning import SILENT_AFTER, SILENT_S, Meaning
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Message
from breakwater_gateway.runtime.clock import Clock
from breakwater_gateway.runtime.memory_bus import MemoryBus, MemoryHub
from breakwater_gateway.runtime.metrics import Registry
from breakwater_protocol import cache as c

pytestmark = pytest.mark.anyio

PATIENCE_S = 0.025


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


async def asked(meaning: Meaning) -> tuple[str, float]:
    """Why it is a miss, and after how many seconds that was known."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[c.Hit | c.Miss] = loop.create_future()
    began = loop.time()
    lookup = c.Lookup(request="r", tenant="t", partition="p", model="m", text="x", digest="d")
    meaning.look(lookup, answer.set_result, patience_s=PATIENCE_S)
    found = await answer
    assert isinstance(found, c.Miss)
    return found.reason, round(loop.time() - began, 4)


async def test_an_owner_that_does_not_answer_holds_up_a_request_a_second() -> None:
    hub = MemoryHub()
    bus = MemoryBus("router", hub)
    heard: list[Message] = []
    answers = False

    def owner(message: Message) -> None:
        heard.append(message)
        if answers:
            bus.publish(message.reply, msgspec.json.encode(c.Miss("empty")))

    await bus.subscribe(SUBJECTS.cache_lookup.any(), owner)
    context = Context(
        id="router",
        bus=bus,
        subjects=SUBJECTS,
        clock=Clock(),
        log=quiet_log(),
        metrics=Registry(),
        config=Config({}),
    )
    meaning = Meaning(context)
    for _ in range(SILENT_AFTER + 1):
        assert await asked(meaning) == ("late", PATIENCE_S)
    for _ in range(20):
        assert await asked(meaning) == ("silent", 0.0)
    assert len(heard) == SILENT_AFTER + 1
    await asyncio.sleep(SILENT_S)
    assert await asked(meaning) == ("late", PATIENCE_S)
    assert await asked(meaning) == ("silent", 0.0)
    answers = True
    await asyncio.sleep(SILENT_S)
    assert (await asked(meaning))[0] == "empty"
    assert (await asked(meaning))[0] == "empty"
