"""What a call costs, through router and worker: the configuration's price, the list's, or nobody's."""

import asyncio

import pytest
from msgspec.structs import replace
from tests.actors.stage import ANSWER, SUBJECTS, Gateway, config, stage
from tests.virtual_time import VirtualTimeLoop

from breakwater_gateway.config.model import Config, Price
from breakwater_gateway.runtime.bus import Message
from breakwater_protocol import headers as h
from breakwater_protocol.events import Alert

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


def served_by(provider: str, model: str, price: Price | None = None) -> Config:
    """One model with one deployment there."""
    settings = config("a", price=price)
    named = settings.models["m"]
    (deployment,) = named.deployments
    moved = replace(deployment, provider=provider, model=model)
    return replace(settings, models={"m": replace(named, deployments=(moved,))})


class Alerts:
    def __init__(self) -> None:
        self.heard: list[tuple[Alert, Message]] = []

    async def listen(self, gateway: Gateway) -> None:
        def hear(message: Message) -> None:
            self.heard.append((SUBJECTS.alert.decode(message.data), message))

        await gateway.bus.subscribe(SUBJECTS.alert.at("unpriced"), hear)


async def cost(gateway: Gateway, answer: bytes = ANSWER) -> str:
    caller = gateway.ask()
    call = await gateway.provider.next_call()
    call.reply(200, answer)
    found = (await caller.reply()).headers["breakwater-cost-usd"]
    await asyncio.sleep(0.1)
    return found


async def test_a_model_of_the_list_costs_its_list_price() -> None:
    alerts = Alerts()
    async with stage(served_by("openai", "gpt-4o")) as gateway:
        await alerts.listen(gateway)
        assert await cost(gateway) == "0.000017500"
        assert [a.cost_nano_usd for a in gateway.attempts] == [17_500]
    assert not alerts.heard


async def test_the_configuration_s_price_wins() -> None:
    async with stage(served_by("openai", "gpt-4o", Price(1, 2))) as gateway:
        assert await cost(gateway) == "0.000000005"


async def test_an_unknown_price_is_unknown_and_told_once_an_hour() -> None:
    alerts = Alerts()
    async with stage(served_by("openai", "gpt-unheard-of")) as gateway:
        await alerts.listen(gateway)
        for _ in range(3):
            assert await cost(gateway) == "unknown"
        ((alert, message),) = alerts.heard
        assert (alert.kind, alert.target, alert.model) == ("unpriced", "a", "gpt-unheard-of")
        assert message.headers[h.CE_TYPE] == "breakwater.alert.raised"
        assert message.headers[h.NATS_MSG_ID] == message.headers[h.CE_ID]
        assert [a.cost_nano_usd for a in gateway.attempts] == [None, None, None]
        await asyncio.sleep(3600)
        await cost(gateway)
        assert len(alerts.heard) == 2


async def test_an_answer_without_usage_is_no_matter_of_prices() -> None:
    alerts = Alerts()
    async with stage(served_by("openai", "gpt-unheard-of")) as gateway:
        await alerts.listen(gateway)
        answer = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}'
        assert await cost(gateway, answer) == "unknown"
    assert not alerts.heard
