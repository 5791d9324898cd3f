"""Whole answers of Converse to the neutral vocabulary."""

from msgspec import Raw

from breakwater_gateway.worker.wire import neutral as n
from breakwater_gateway.worker.wire import objects as o
from breakwater_gateway.worker.wire.bad_request import BadRequest
from breakwater_gateway.worker.wire.bedrock import blocks as b
from breakwater_gateway.worker.wire.bedrock.errors import classify
from breakwater_gateway.worker.wire.bedrock.usage import broken, finish_of, read_usage
from breakwater_protocol import failures as f


def decode_answer(body: bytes, *, status: int = 200) -> n.Answer | f.Failure:
    """The answer, or the failure that `body` is under whatever status.

    The API names neither an id nor the model. `extra` keeps `usage` as it came, since it says more than
    the neutral one, with `metrics`, `trace` and the like.
    """
    if status >= 400:
        return classify(status, {}, body, now=0.0)
    try:
        given = o.Fields(body)
    except BadRequest:
        return f.MalformedAnswer(o.not_json(body), provider_status=status)
    if not given.has("output"):
        if given.has("message") or given.has("__type") or given.has("Output"):
            return classify(status, {}, body, now=0.0)
        return f.MalformedAnswer("the provider's answer has no output", provider_status=status)
    try:
        return _answer(given, status)
    except BadRequest as wrong:
        return f.MalformedAnswer(
            f"the provider's answer is not of its API's shape: {wrong.message}",
            provider_status=status,
        )


def _answer(given: o.Fields, status: int) -> n.Answer | f.Failure:
    reason = given.text("stopReason") or ""
    failure = broken(reason, status)
    if failure is not None:
        return failure
    output = given.need("output", given.child("output"))
    message = output.need("message", output.child("message"))
    role = message.left.pop("role", None)
    if role is not None and bytes(role) != b'"assistant"':
        message.left["role"] = role
    path = message.path("content")
    parts = [b.part(raw, f"{path}[{at}]") for at, raw in enumerate(message.items("content") or ())]
    counted = given.left.get("usage")
    tier = given.child("serviceTier")
    service_tier = tier.text("type") if tier is not None else None
    given.keep(tier if tier and tier.left else None, "serviceTier")
    extra = dict(given.left)
    if output.left:
        extra["output"] = Raw(o.encode(output.left))
    return n.Answer(
        dialect="bedrock",
        candidates=[
            n.Candidate(parts=parts, finish=finish_of(reason), native=reason, extra=message.left)
        ],
        usage=read_usage(counted),
        service_tier=service_tier or "",
        extra=extra,
    )
