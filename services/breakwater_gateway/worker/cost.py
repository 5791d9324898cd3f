"""Cost of a call in integer nano-USD."""

from breakwater_gateway.config.model import Price
from breakwater_protocol.chat import Usage


def cost_nano_usd(usage: Usage | None, price: Price | None) -> int | None:
    """None when usage or price is unknown: unknown is a state, never zero."""
    if usage is None or price is None:
        return None
    return usage.input * price.input + usage.output * price.output
