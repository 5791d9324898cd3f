"""What a desk says and does not wait for: a bus that is gone is logged, and whoever listens finds out by itself."""

from collections.abc import Mapping

from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError


def tell(
    context: Context, subject: str, data: bytes, headers: Mapping[str, str], *, reply: str = ""
) -> None:
    try:
        context.bus.publish(subject, data, headers=headers, reply=reply)
    except BusError as error:
        context.log.warning("not_sent", subject=subject[:200], error=repr(error))
