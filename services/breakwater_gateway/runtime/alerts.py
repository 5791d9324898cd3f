"""Alerts: what an actor tells people. Nobody waits for one, and one that is lost is in the log."""

from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError
from breakwater_protocol import cloudevents
from breakwater_protocol.events import Alert


def publish_alert(context: Context, alert: Alert, *, id_: str = "") -> None:
    """`id_`: of the event, where saying it twice is to be seen as once; else a new one."""
    try:
        context.bus.publish(
            context.subjects.alert.at(alert.kind),
            context.subjects.alert.encode(alert),
            headers=cloudevents.headers_for(
                Alert, alert.source, alert.at, id_ or context.clock.new_id("evt_")
            ),
        )
    except BusError as error:
        context.log.warning("alert_lost", kind=alert.kind, target=alert.target, error=repr(error))
