"""What the simulator remembers of calls: its log and its counters, as values."""

from msgspec import Struct


class Entry(Struct):
    """One request in the log, written when it has ended."""

    seq: int
    at: float
    """Unix time of its arrival."""
    lane: str
    path: str
    dialect: str = ""
    model: str = ""
    key: str = ""
    """A hash: keys are secrets even here."""
    request_id: str = ""
    """The caller's `x-request-id`."""
    stream: bool = False
    status: int = 0
    outcome: str = "in_flight"
    """`ok`, `cancelled`, `drained`, a fault's class, or `http_<status>` for what was wrong in itself."""
    tokens_sent: int = 0
    bytes_sent: int = 0
    cancelled_by_client: bool = False
    first_byte_ms: float | None = None
    total_ms: float = 0.0
    body: str | None = None
    """Of the request, if the script says `record`."""


class LaneStats(Struct):
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    tokens_sent: int = 0
    bytes_sent: int = 0
    outcomes: dict[str, int] = {}
