"""Sight: what strategies may know of targets, at the time they are asked."""

from collections.abc import Callable

from breakwater_gateway.config.model import Deployment
from breakwater_gateway.config.targets import key_target
from breakwater_gateway.pricing.cost import ModelPrice, of_config
from breakwater_gateway.pricing.prices import Prices
from breakwater_gateway.router.strategies import Ask
from breakwater_protocol.measures import LatencyBoard, UsageBoard
from breakwater_protocol.views import LoadBoard


class Sight:
    """A `TargetView` over the boards. Who asks says the time before, by `now` and `now_wall`."""

    __slots__ = ("_latency", "_prices", "_usage", "in_flight", "now", "now_wall")

    def __init__(
        self,
        loads: LoadBoard,
        latency: LatencyBoard,
        usage: UsageBoard,
        *,
        prices: Callable[[], Prices],
    ) -> None:
        """`prices` is asked for the table when a price is first wanted: reading it takes a while."""
        self.in_flight = loads.in_flight
        self._latency = latency
        self._usage = usage
        self._prices = prices
        self.now = 0.0
        self.now_wall = 0.0

    def latency_ms(self, target: str, *, stream: bool) -> float | None:
        return self._latency.latency_ms(target, stream=stream, now=self.now)

    def used(self, deployment: Deployment) -> float | None:
        id_ = deployment.id
        used = self._usage.used(
            id_, deployment.rpm, deployment.tpm, now=self.now, in_flight=self.in_flight(id_)
        )
        if len(deployment.api_keys) < 2:
            return used
        # As much room as its roomiest key has.
        keys = [
            self._usage.used(key_target(id_, key), None, None, now=self.now)
            for key in range(len(deployment.api_keys))
        ]
        known = [each for each in keys if each is not None]
        if len(known) < len(keys):
            return used
        return max(min(known), used or 0.0)

    def price(self, deployment: Deployment, ask: Ask) -> ModelPrice | None:
        """The configuration's price, else the provider's list price now; None: not known."""
        if deployment.price is not None:
            return of_config(deployment.price)
        name = deployment.provider_model(ask.model, name=ask.name)
        return self._prices().price_of(deployment.provider, name, self.now_wall)
