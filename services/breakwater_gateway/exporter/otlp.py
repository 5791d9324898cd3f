"""OTLP over HTTP: spans as protobuf, where they go, and what an answer means.

Specification: https://opentelemetry.io/docs/specs/otlp/ (1.x) and the environment variables of
https://opentelemetry.io/docs/specs/otel/protocol/exporter/.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from google.protobuf.message import DecodeError
from msgspec import Struct
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from breakwater_gateway.exporter.spans import Span, Value

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

PATH: Final = "/v1/traces"
CONTENT_TYPE: Final = "application/x-protobuf"
SCOPE: Final = "breakwater_gateway.exporter"
RETRIED: Final = frozenset({429, 502, 503, 504})
RETRY_AFTER_MAX_S: Final = 300.0
HEADERS_MAX: Final = 64
VARIABLE_MAX: Final = 8_192

_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_HEADER_VALUE: Final = re.compile(r"[\t -~]{0,4096}")
_KINDS: Final = {"server": ProtoSpan.SPAN_KIND_SERVER, "client": ProtoSpan.SPAN_KIND_CLIENT}
_HAS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200


class BadSetting(ValueError):
    """What an environment variable holds cannot be used; the message repeats nothing of it."""


class Batch:
    """Spans of one POST. Adding costs some 20 µs a span, so that whoever adds may pause in between."""

    def __init__(self, resource: Mapping[str, Value], version: str) -> None:
        self._request = ExportTraceServiceRequest()
        of = self._request.resource_spans.add()
        _fill(of.resource.attributes, resource)
        self._scope = of.scope_spans.add()
        self._scope.scope.name = SCOPE
        self._scope.scope.version = version
        self.count = 0

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            remote = bool(span.parent_id) and span.kind == "server"
            made = self._scope.spans.add(
                trace_id=span.trace_id,
                span_id=span.span_id,
                parent_span_id=span.parent_id,
                trace_state=span.trace_state,
                flags=(span.flags & 0xFF) | 1 | _HAS_REMOTE | (_IS_REMOTE if remote else 0),
                name=span.name,
                kind=_KINDS[span.kind],
                start_time_unix_nano=span.start_ns,
                end_time_unix_nano=span.end_ns,
            )
            _fill(made.attributes, span.attributes)
            for point in span.points:
                event = made.events.add(time_unix_nano=point.at_ns, name=point.name)
                _fill(event.attributes, point.attributes)
            if span.error is not None:
                made.status.code = Status.STATUS_CODE_ERROR
                made.status.message = span.error
            self.count += 1

    def data(self) -> bytes:
        return self._request.SerializeToString()


def _fill(
    attributes: "RepeatedCompositeFieldContainer[KeyValue]", found: Mapping[str, Value]
) -> None:
    # Filled in place: making each message first and copying it in costs three times as much.
    for key, value in found.items():
        into = attributes.add(key=key).value
        match value:
            case str():
                into.string_value = value
            case bool():
                into.bool_value = value
            case int():
                into.int_value = value
            case float():
                into.double_value = value


# --- Where they go ------------------------------------------------------------------------------


def traces_url(base: str) -> str:
    """The address that spans are posted to. Raises `BadSetting`."""
    text = base.strip()
    if not text.startswith(("http://", "https://")):
        raise BadSetting("it must start with http:// or https://")
    fault = BadSetting("it is not a URL such as http://collector:4318")
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise fault from None
    if not host or len(text) > VARIABLE_MAX or not re.fullmatch(r"[!-~]+", text):
        raise fault
    if parts.query or parts.fragment:
        raise BadSetting("a query or a fragment has no place in it")
    path = text.rstrip("/")
    return path if path.endswith(PATH) else path + PATH


def speaks_grpc(url: str) -> bool:
    """4317 is the port of OTLP over gRPC, which does not understand HTTP/1.1."""
    return urlsplit(url).port == 4317


def read_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """`OTEL_EXPORTER_OTLP_HEADERS`, and those of traces alone on top: secrets, as a rule.

    Raises `BadSetting`, which names the variable.
    """
    found: dict[str, str] = {}
    for variable in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"):
        for name, value in _pairs(environment.get(variable, ""), variable):
            if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
                raise BadSetting(f"{variable} holds what cannot be a header: expected name=value,…")
            found[name.lower()] = value
    return found


def read_resource(
    environment: Mapping[str, str], *, version: str, instance: str
) -> dict[str, Value]:
    """Who speaks: `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` over our own. Raises `BadSetting`."""
    variable = "OTEL_RESOURCE_ATTRIBUTES"
    found: dict[str, Value] = {
        "service.name": "breakwater",
        "service.version": version,
        "service.instance.id": instance,
        "telemetry.sdk.language": "python",
    }
    found |= dict(_pairs(environment.get(variable, ""), variable))
    if name := environment.get("OTEL_SERVICE_NAME", "").strip():
        found["service.name"] = name[:256].encode("utf-8", "replace").decode()
    return found


def _pairs(text: str, variable: str) -> list[tuple[str, str]]:
    """`a=1,b=2`, percent-encoded as W3C Baggage is."""
    if len(text) > VARIABLE_MAX:
        raise BadSetting(f"{variable} has {len(text)} characters, {VARIABLE_MAX} may be")
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise BadSetting(f"{variable} must be name=value,name=value")
        clean = unquote(value.strip()).encode("utf-8", "replace").decode()
        found.append((unquote(name.strip()), clean))
    if len(found) > HEADERS_MAX:
        raise BadSetting(f"{variable} names {len(found)} values, {HEADERS_MAX} may be")
    return found


# --- What an answer means -----------------------------------------------------------------------


class Taken(Struct, frozen=True):
    rejected: int = 0
    """Spans that the collector did not want (partial success)."""
    message: str = ""


class TryAgain(Struct, frozen=True):
    why: str
    after_s: float | None = None
    """As the collector asked; None: as we see fit."""


class Refused(Struct, frozen=True):
    """Sending it again would not help."""

    why: str


Verdict = Taken | TryAgain | Refused


def verdict(status: int, headers: Mapping[str, str], body: bytes, *, now: float) -> Verdict:
    """`headers` by lower-case name; `now` is Unix time, for a `retry-after` that is a date."""
    if 200 <= status < 300:
        return _taken(body)
    if status in RETRIED:
        return TryAgain(f"status {status}", _retry_after_s(headers.get("retry-after", ""), now))
    return Refused(f"status {status}")


def _taken(body: bytes) -> Taken:
    try:
        said = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return Taken()  # some answer `{}` or nothing at all to protobuf: it was taken all the same
    message = said.error_message[:200] if said.error_message.isprintable() else ""
    return Taken(max(0, said.rejected_spans), message)


def _retry_after_s(text: str, now: float) -> float | None:
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return min(float(text), RETRY_AFTER_MAX_S)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return min(max(0.0, at.timestamp() - now), RETRY_AFTER_MAX_S)


BACKOFF_BASE_S: Final = 1.0
BACKOFF_CAP_S: Final = 60.0


def backoff_s(failures: int, *, draw: float) -> float:
    """Before the next try: exponential from 1 s to a minute, half of it drawn. `failures` in a row, from 1."""
    whole = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(failures - 1, 16))
    return whole * (0.5 + draw / 2)
