"""The AsyncAPI 3.0 document of the protocol, made from `Subjects` and the types they carry.

    python -m breakwater_protocol.asyncapi --write protocol/asyncapi.yaml

Source: the AsyncAPI specification 3.0.0 and its NATS binding 0.1.0. Field descriptions are the
docstrings under the fields. PyYAML is imported when the text is made.
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import msgspec
from msgspec import Struct

from breakwater_protocol import (
    answers,
    cache,
    chat,
    commands,
    events,
    flights,
    inspection,
    ledger,
)
from breakwater_protocol import headers as h
from breakwater_protocol.cloudevents import SPECVERSION, TYPES
from breakwater_protocol.subjects import Subject, Subjects

VERSION: Final = "1.0.0"
"""Of the protocol: the minor number grows with additions, and nothing else ever happens."""

# JSON of the document: a wire boundary.
Json = dict[str, Any]

_DESCRIPTION: Final = """\
Everything that Breakwater says on NATS. The same document serves applications that ask for answers,
subscribers to events, and actors written in another language.

**Tokens.** Whatever comes from outside and becomes part of a subject (a tenant, a model, a target, a
request id) goes through one codec: `A-Z a-z 0-9 _ -` are kept and every other byte of the UTF-8 text
becomes `=XX` with upper-case hexadecimal digits, so `openai/gpt-4.1` is `openai=2Fgpt-4=2E1`. The
empty text is `=`. A token has at most 1024 bytes. Decoding is exact: what the codec cannot have made
is refused.

**Headers** are lower case and case-sensitive, apart from those that NATS itself defines.

**Streams.** A chat request with `"stream": true` is answered by several messages, each with one or
more chunk objects, one JSON object a line, and the header `breakwater-seq` 0, 1, 2 and so on. A gap
or a repeat means that the answer cannot be continued. `breakwater-attempt` says which attempt speaks
(absent: the first); a reader locks on the attempt whose message 0 it saw and ignores the others,
except where a later one says `breakwater-seam: <deployment>` and bears the number that is due: that
deployment goes on where the stream broke off. The last message has an empty body and `breakwater-end`.
An end without a number comes from the router, when the worker that was answering has died.

**No gateway.** Where nobody serves, NATS itself answers at once with an empty message and status 503.

**Growth.** Fields are only ever added, with defaults: ignore those you do not know.
"""

_CODED: Final = "One token of the codec described above."
_PARAMETERS: Final[Mapping[str, Json]] = {
    "tenant": {"description": f"Whose request it is. {_CODED}", "examples": ["default"]},
    "router": {"description": f"The router's id, as in its heartbeat. {_CODED}"},
    "worker": {"description": f"The worker's id, as in its heartbeat. {_CODED}"},
    "request": {"description": f"The request's id, as in `{h.REQUEST_ID}`. {_CODED}"},
    "actor": {"description": f"The kind of actor. {_CODED}", "examples": ["router", "worker"]},
    "id": {"description": f"Unique among the actors of a cluster. {_CODED}"},
    "target": {
        "description": "Whose breaker it is: a deployment's id; with `#key2` after it, the second key of its"
        f" pool; `@provider/region`, a provider in a region. {_CODED}",
        "examples": ["openai=2Fgpt-4=2E1", "openai=2Fgpt-4=2E1=23key2", "=40openai=2Feu"],
    },
    "action": {"description": "What to do.", "enum": ["list", "reset", "trip"]},
    "state": {
        "description": "The state entered.",
        "enum": sorted(get_args(events.BreakerState)),
    },
    "outcome": {
        "description": "`ok`, `partial`, `cancelled`, or why it failed: of an attempt the failure's"
        " kind, of a request the error's code.",
        "examples": ["ok", "rate_limited"],
    },
    "kind": {
        "description": f"Of an alert what it is about, of a budget what happened. {_CODED}",
        "examples": ["auth", "soft"],
    },
    "account": {
        "description": f"The account's name. {_CODED}",
        "examples": ["user=3Aalice", "org=3Aacme"],
    },
    "partition": {"description": "Of the ledger: `p0` to `p15`.", "examples": ["p3"]},
    "revision": {"description": "Of the configuration: a decimal number."},
    "group": {"description": f"Of processes that serve behind one port. {_CODED}"},
    "shard": {"description": "Of the semantic cache: a decimal number; the partition tells which."},
    "verdict": {
        "description": "What changed.",
        "examples": ["false_hit", "stale", "purged"],
    },
    "epoch": {"description": "Of the target's breaker: a decimal number."},
}

_TEXT: Final[Json] = {"type": "string"}
_NUMBER: Final[Json] = {"type": "string", "pattern": r"^[0-9]+$"}
_DECIMAL: Final[Json] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$"}
_DURATION: Final[Json] = {
    "type": "string",
    "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)?$",
    "examples": ["250ms", "10s"],
}


def _one_of(*values: str) -> Json:
    return {"type": "string", "enum": list(values)}


_ASKED: Final[Mapping[str, tuple[Json, str]]] = {
    h.USER: (_TEXT, "Whose use it is, for budgets and the request log."),
    h.ORG: (_TEXT, "The organisation, likewise."),
    h.FEATURE: (_TEXT, "The feature of the application, likewise."),
    h.CACHE: (_one_of("on", "off", "refresh", "only"), "How the caches may be used."),
    h.CACHE_TTL: (_DURATION, "How long this answer may be kept."),
    h.CACHE_NAMESPACE: (_TEXT, "Answers of other namespaces are not seen."),
    h.CACHE_THRESHOLD: (_DECIMAL, "Similarity that a semantic hit needs; may only be raised."),
    h.CACHE_FEEDBACK: (
        {
            "type": "string",
            "pattern": "^(e[0-9a-f]{64}|s[0-9]{1,4}-[0-9A-Za-z]{1,64})=(wrong|stale|good)$",
        },
        "What an earlier answer was, by its breakwater-cache-id. `wrong` and `stale` have this request asked anew.",
    ),
    h.TIMEOUT: (_DURATION, "Deadline of the whole request."),
    h.TTFT_TIMEOUT: (_DURATION, "How long the first token may take, each attempt for itself."),
    h.PRIORITY: (_one_of("critical", "interactive", "batch"), "Who waits when not all can go."),
    h.LADDER: (_TEXT, "What to fall back on, instead of the model's own ladder."),
    h.MAX_COST: (
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$", "examples": ["0.05"]},
        "USD that all calls for this request may cost together; may only lower the model's own bound.",
    ),
    h.REQUEST_ID: (_TEXT, "Made by the caller, who needs it to cancel; the same id runs once."),
}
_TRACE: Final[Mapping[str, tuple[Json, str]]] = {
    h.TRACEPARENT: (_TEXT, "W3C trace context."),
    h.TRACESTATE: (_TEXT, "W3C trace context."),
}
_ANSWERED: Final[Mapping[str, tuple[Json, str]]] = {
    h.REQUEST_ID: (_TEXT, "The request's id."),
    h.MODEL: (_TEXT, "The logical model, percent-encoded."),
    h.DEPLOYMENT: (_TEXT, "Who answered."),
    h.RUNG: (
        _one_of("primary", "cache", "stale", "simple_model", "static", "error"),
        "The rung of the degradation ladder.",
    ),
    h.CACHE: (
        _one_of("hit", "semantic", "stale", "coalesced", "miss", "bypass"),
        "The caches' verdict.",
    ),
    h.SIMILARITY: (_DECIMAL, "Of a semantic hit."),
    h.MATCH: (_one_of("words", "meaning", "default"), "How a written answer was found."),
    h.MATCH_SCORE: (_DECIMAL, "What was held against the threshold of that way, 0 to 1."),
    h.CACHE_ID: (_TEXT, "Of this serving of a cached answer: what feedback names."),
    h.ATTEMPTS: (_NUMBER, "Provider calls made for this request."),
    h.COST_USD: (_TEXT, "Decimal US dollars, or `unknown` for a model without a price."),
    h.OVERHEAD_MS: (_DECIMAL, "Milliseconds that were the gateway's own."),
    h.BUDGET_REMAINING: (_TEXT, "What is left of the tightest budget."),
    h.PARTIAL: (_TEXT, "Why the answer is partial."),
    h.DROPPED_PARAMS: (_TEXT, "Parameters that this deployment does not know."),
}
_FRAMED: Final[Mapping[str, tuple[Json, str]]] = {
    h.SEQ: (_NUMBER, "Number of the message within the stream, from 0."),
    h.ATTEMPT: (_NUMBER, "Which attempt speaks; absent means 1."),
    h.SEAM: (_TEXT, "The deployment that from here on goes on with a stream that broke off."),
}
_FAILED: Final[Mapping[str, tuple[Json, str]]] = {
    h.SERVICE_ERROR_CODE: ({"type": "string", "pattern": "^[45][0-9]{2}$"}, "An HTTP status."),
    h.SERVICE_ERROR: (_TEXT, "The message, in one line of ASCII."),
    h.SHOULD_RETRY: (_one_of("true", "false"), "Whether the same request later may do better."),
    h.RETRY_AFTER: (_NUMBER, "Seconds."),
}


class _Headers(NamedTuple):
    fields: Mapping[str, tuple[Json, str]]
    required: tuple[str, ...] = ()
    properties: bool = False


_HEADERS: Final[Mapping[str, _Headers]] = {
    "RequestHeaders": _Headers({**_ASKED, **_TRACE}, properties=True),
    "AnswerHeaders": _Headers({**_ANSWERED, h.ATTEMPT: _FRAMED[h.ATTEMPT]}),
    "ChunkHeaders": _Headers({**_FRAMED, **_ANSWERED}, (h.SEQ,)),
    "EndHeaders": _Headers(
        {
            h.END: (_one_of("ok", "partial", "error"), "How the stream ended."),
            **_FRAMED,
            **_ANSWERED,
        },
        (h.END,),
    ),
    "ErrorHeaders": _Headers({**_FAILED, **_ANSWERED}, (h.SERVICE_ERROR_CODE, h.SERVICE_ERROR)),
    "EventHeaders": _Headers(
        {
            h.CE_ID: (_TEXT, "Unique for its source."),
            h.CE_SOURCE: (_TEXT, "`<actor>/<id>`."),
            h.CE_TYPE: (_one_of(*sorted(TYPES.values())), "CloudEvents 1.0, binary mode."),
            h.CE_TIME: ({"type": "string", "format": "date-time"}, "When it happened."),
            h.CE_SPECVERSION: (_one_of(SPECVERSION), "Of CloudEvents."),
            h.NATS_MSG_ID: (_TEXT, f"Equals `{h.CE_ID}`: streams drop what comes twice."),
            h.TRACEPARENT: _TRACE[h.TRACEPARENT],
        },
        (h.CE_ID, h.CE_SOURCE, h.CE_TYPE, h.CE_TIME, h.CE_SPECVERSION, h.NATS_MSG_ID),
    ),
}


class _Reply(NamedTuple):
    """A message of the private inbox."""

    summary: str
    payload: object
    """None: an empty body; {}: any JSON."""
    headers: str = ""
    content_type: str = "application/json"


_REPLIES: Final[Mapping[str, _Reply]] = {
    "ChatCompletion": _Reply(
        "The whole answer, in OpenAI's shape.", answers.CompletionBody, "AnswerHeaders"
    ),
    "ChatChunks": _Reply(
        "A part of a streamed answer: one chunk object a line.",
        chat.Chunk,
        "ChunkHeaders",
        "application/x-ndjson",
    ),
    "StreamEnd": _Reply("The end of a streamed answer: an empty body.", None, "EndHeaders"),
    "EmbeddingList": _Reply(
        "The embeddings, in OpenAI's shape.", answers.EmbeddingsBody, "AnswerHeaders"
    ),
    "NativeAnswer": _Reply(
        "The whole answer, or why there is none, in the shape of the API that was asked.",
        {},
        "AnswerHeaders",
    ),
    "NativeEvents": _Reply(
        "A part of a streamed answer: one event of the API that was asked a line.",
        {},
        "ChunkHeaders",
        "application/x-ndjson",
    ),
    "ModelList": _Reply("The logical models.", chat.ModelList, "AnswerHeaders"),
    "Error": _Reply(
        "Why there is no answer: OpenAI's error object.", answers.ErrorBody, "ErrorHeaders"
    ),
    "WorkReply": _Reply("`started`, then `finished`; or `finished` alone.", commands.WorkReply),
    "LeaseReply": _Reply(
        "The lease, or why there is none; always of what the log has.", ledger.LeaseReply
    ),
    "ReportReply": _Reply("The reports are in the log, or were not taken.", ledger.ReportReply),
    "QueryReply": _Reply("The books.", ledger.QueryReply),
    "CommandReply": _Reply("The change is in the log, or was refused.", ledger.CommandReply),
    "BreakerReply": _Reply(
        "The breakers as they are now, or why nothing was done.", commands.BreakerReply
    ),
    "Metrics": _Reply(
        "One process's metrics, for others of the same version: their shape is no part of this.",
        {},
        content_type="application/msgpack",
    ),
    "LookupReply": _Reply("An answer to serve, or why there is none.", cache.LookupReply),
    "NearWritten": _Reply("Written questions, the nearest first.", cache.NearWritten),
    "FeedbackReply": _Reply("Whether the verdict counts.", cache.FeedbackReply),
    "ShardStats": _Reply("What the shard holds and did.", cache.ShardStats),
    "Inspected": _Reply("What is kept, or would become of the request.", inspection.Inspected),
    "Meaning": _Reply("What the owner's index has, and its decision.", inspection.Meaning),
    "PurgeReply": _Reply("How many entries are gone.", cache.PurgeReply),
    "Claimed": _Reply("Who leads: the router that asked, or another.", flights.Claimed),
    "Joined": _Reply("To who joined: the form in which the answer comes.", flights.Joined),
    "Tapped": _Reply(
        "To the inbox of the tap: from here on the worker talks to it.", flights.Tapped
    ),
    "Pong": _Reply("The worker is there: an empty body.", None),
}


class _Talk(NamedTuple):
    """Who sends on a subject and who receives, in the words of heartbeats; replies go back."""

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    replies: tuple[str, ...] = ()
    queue: str = ""
    """The queue group of the receivers: one of them gets each message."""
    headers: str = ""
    payload: object = None
    """Of subjects that carry raw JSON; None is an empty body there."""


_EVERYBODY: Final = ("subscriber",)
_NATIVE: Final = _Talk(
    ("client", "edge"),
    ("router",),
    ("NativeAnswer", "NativeEvents", "StreamEnd"),
    "router",
    "RequestHeaders",
    chat.NativeRequest,
)
_TALK: Final[Mapping[str, _Talk]] = {
    "chat": _Talk(
        ("client", "edge"),
        ("router",),
        ("ChatCompletion", "ChatChunks", "StreamEnd", "Error"),
        "router",
        "RequestHeaders",
        chat.ChatRequest,
    ),
    "embeddings": _Talk(
        ("client", "edge"),
        ("router",),
        ("EmbeddingList", "Error"),
        "router",
        "RequestHeaders",
        chat.EmbeddingsRequest,
    ),
    "embed": _Talk(
        ("cache", "operator"),
        ("router",),
        ("EmbeddingList", "Error"),
        "router",
        "RequestHeaders",
        chat.EmbeddingsRequest,
    ),
    "messages": _NATIVE,
    "responses": _NATIVE,
    "generate": _NATIVE,
    "models": _Talk(
        ("client", "edge"), ("router",), ("ModelList", "Error"), "router", "RequestHeaders"
    ),
    "work": _Talk(("router",), ("worker",), ("WorkReply",)),
    "ping": _Talk(("router",), ("worker",), ("Pong",)),
    "cancel": _Talk(("client", "edge"), ("router", "worker")),
    "tap": _Talk(("router",), ("worker",), ("Tapped",)),
    "flight": _Talk(("router",), ("router",), ("Claimed", "Joined")),
    "cache_lookup": _Talk(("router",), ("cache",), ("LookupReply",)),
    "cache_written": _Talk(("router",), ("cache",), ("NearWritten",)),
    "cache_store": _Talk(("router",), ("cache",)),
    "cache_feedback": _Talk(("router", "edge"), ("cache",), ("FeedbackReply",)),
    "cache_stats": _Talk(("client",), ("cache",), ("ShardStats",)),
    "cache_purge": _Talk(("client",), ("cache",), ("PurgeReply",)),
    "cache_inspect": _Talk(("client", "router"), ("router", "cache"), ("Inspected", "Meaning")),
    "heartbeat": _Talk(("actor",), _EVERYBODY),
    "health": _Talk(("health",), _EVERYBODY, headers="EventHeaders"),
    "attempt": _Talk(("worker",), _EVERYBODY, headers="EventHeaders"),
    "request": _Talk(("router",), _EVERYBODY, headers="EventHeaders"),
    "cache": _Talk(("actor",), _EVERYBODY, headers="EventHeaders"),
    "alert": _Talk(("actor",), _EVERYBODY, headers="EventHeaders"),
    "config": _Talk(("actor",), _EVERYBODY, headers="EventHeaders"),
    "metrics": _Talk(("edge",), ("actor",), ("Metrics",)),
    "lease": _Talk(("router",), ("ledger",), ("LeaseReply",)),
    "report": _Talk(("router",), ("ledger",), ("ReportReply",)),
    "books": _Talk(("operator",), ("ledger",), ("QueryReply",)),
    "operate": _Talk(("operator",), ("ledger",), ("CommandReply",)),
    "ledger_log": _Talk(("ledger",), ("ledger", "operator")),
    "budget": _Talk(("ledger",), _EVERYBODY, headers="EventHeaders"),
    "breaker": _Talk(("operator",), ("health",), ("BreakerReply",)),
    "probe": _Talk(("router", "health"), ("stream",)),
}
_ROLES: Final[Mapping[str, str]] = {
    "client": "An application.",
    "edge": "Turns HTTP into the requests that any client may send.",
    "router": "Plans each request and its attempts.",
    "worker": "Calls the providers.",
    "cache": "Owns shards of the semantic cache, and the vectors of written questions.",
    "health": "Owns the breakers.",
    "ledger": "Owns the budget books, and lends out of them.",
    "operator": "Somebody at the command line.",
    "actor": "Any actor.",
    "subscriber": "Anything that listens, actors included.",
    "stream": "A JetStream stream that takes one message a subject.",
}

_UNIONS: Final[Mapping[str, object]] = {
    "WorkReply": commands.WorkReply,
    "LookupReply": cache.LookupReply,
    "LeaseReply": ledger.LeaseReply,
    "ReportReply": ledger.ReportReply,
    "QueryReply": ledger.QueryReply,
    "CommandReply": ledger.CommandReply,
}
"""Unions of structs, which have no name of their own."""

_OPEN_MODULES: Final = (chat, answers)
"""Shapes of provider APIs: we name what we read, and whatever else is there travels on."""


def document(subjects: Subjects | None = None) -> Json:
    """The document as JSON values. Raises `LookupError` for a subject that no table here covers."""
    subjects = subjects or Subjects()
    named = {name: value for name, value in vars(subjects).items() if isinstance(value, Subject)}
    unknown = sorted(set(named) - set(_TALK))
    if unknown:
        raise LookupError(f"say in _TALK who sends and receives: {', '.join(unknown)}")
    schemas = _Schemas()
    channels: Json = {}
    operations: Json = {}
    messages: Json = {}
    for name, subject in named.items():
        talk = _TALK[name]
        message = _camel(name)
        raw = subject.carries is msgspec.Raw
        messages[message] = _message(
            subject.summary, talk.payload if raw else subject.carries, talk.headers, schemas
        )
        channels[name] = {
            "address": subject.template,
            "summary": subject.summary,
            "parameters": {
                place: dict(_PARAMETERS[place])
                for place in re.findall(r"\{([a-z_]+)\}", subject.template)
            },
            "messages": {message: _ref("messages", message)},
        }
        operations |= _operations(name, message, talk)
    for name, reply in _REPLIES.items():
        messages[name] = _message(
            reply.summary, reply.payload, reply.headers, schemas, reply.content_type
        )
    channels["inbox"] = {
        "address": None,
        "summary": "The private subject that a request named as its reply subject.",
        "messages": {name: _ref("messages", name) for name in _REPLIES},
    }
    # A worker answers the caller itself: the inbox travels in the work it is given.
    operations["workerSendsAnswer"] = {
        "action": "send",
        "channel": {"$ref": "#/channels/inbox"},
        "summary": "Straight to the caller, on the inbox that `answer_to` of its work names.",
        "tags": [_ref("tags", "worker")],
        "messages": [
            {"$ref": f"#/channels/inbox/messages/{name}"}
            for name in (
                *("ChatCompletion", "ChatChunks", "StreamEnd", "EmbeddingList", "Error"),
                *("NativeAnswer", "NativeEvents"),
            )
        ],
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Breakwater",
            "version": VERSION,
            "description": _DESCRIPTION,
            "license": {
                "name": "Apache-2.0",
                "url": "https://www.apache.org/licenses/LICENSE-2.0",
            },
        },
        "defaultContentType": "application/json",
        "servers": {
            "local": {
                "host": "127.0.0.1:4222",
                "protocol": "nats",
                "description": "Where `breakwater up` starts its own server.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {name: _header_schema(spec) for name, spec in _HEADERS.items()}
            | schemas.components(),
            "tags": {
                role: {"name": role, "description": said} for role, said in sorted(_ROLES.items())
            },
        },
    }


def text(subjects: Subjects | None = None) -> str:
    """The document as YAML, the same bytes for the same types."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - PyYAML's hook
            return True

    def literal(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, literal)
    body: str = yaml.dump(
        document(subjects), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100
    )
    return (
        "# Generated from the types: python -m breakwater_protocol.asyncapi"
        " --write protocol/asyncapi.yaml\n" + body
    )


class _Schemas:
    """Collects the types that messages name, then turns them into schemas together."""

    def __init__(self) -> None:
        self._types: list[Any] = []

    def ref(self, kind: object) -> Json:
        """A reference to the type's schema; a union of structs gets a name of its own."""
        if kind not in self._types:
            self._types.append(kind)
        return _ref("schemas", self._name(kind))

    def components(self) -> Json:
        roots, found = msgspec.json.schema_components(
            self._types, ref_template="#/components/schemas/{name}"
        )
        for kind, root in zip(self._types, roots, strict=True):
            found.setdefault(self._name(kind), root)
        classes = {kind.__name__: kind for kind in _structs(self._types)}
        for name, schema in found.items():
            kind = classes.get(name)
            if kind is not None:
                _describe(schema, kind)
        return {name: _to_asyncapi(found[name]) for name in sorted(found)}

    @staticmethod
    def _name(kind: object) -> str:
        if isinstance(kind, type):
            return kind.__name__
        for name, union in _UNIONS.items():
            if kind == union:
                return name
        raise LookupError(f"this union has no name for its schema: {kind}")


def _structs(kinds: Iterable[object]) -> set[type[Struct]]:
    """Every struct that these types reach."""
    found: set[type[Struct]] = set()
    waiting = list(kinds)
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, type) and issubclass(kind, Struct):
            if kind not in found:
                found.add(kind)
                waiting += [field.type for field in msgspec.structs.fields(kind)]
        else:
            waiting += get_args(kind)
    return found


def _describe(schema: Json, kind: type[Struct]) -> None:
    """Adds the docstrings under the fields, and says which shapes are open."""
    said = _field_docstrings(kind)
    for name, field in schema.get("properties", {}).items():
        if name in said and "$ref" not in field:
            field["description"] = said[name]
    if kind.__module__ in {module.__name__ for module in _OPEN_MODULES}:
        schema["additionalProperties"] = True


def _field_docstrings(kind: type[Struct]) -> dict[str, str]:
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is Struct or not issubclass(base, Struct):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class
        for field, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                said[field.target.id] = inspect.cleandoc(after.value.value)
    return said


def _to_asyncapi(schema: Any) -> Any:  # noqa: ANN401 - JSON
    """msgspec writes OpenAPI's discriminator object; AsyncAPI's is the property's name."""
    if isinstance(schema, list):
        return [_to_asyncapi(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: _to_asyncapi(value) for key, value in schema.items() if key != "discriminator"}
    discriminator = schema.get("discriminator")
    if isinstance(discriminator, dict) and "propertyName" in discriminator:
        done["oneOf"] = done.pop("anyOf")
        done["discriminator"] = discriminator["propertyName"]
    elif discriminator is not None:
        done["discriminator"] = _to_asyncapi(discriminator)
    return done


def _header_schema(spec: _Headers) -> Json:
    schema: Json = {
        "type": "object",
        "properties": {
            name: {**shape, "description": said} for name, (shape, said) in spec.fields.items()
        },
    }
    if spec.required:
        schema["required"] = list(spec.required)
    if spec.properties:
        schema["patternProperties"] = {
            f"^{h.PROPERTY_PREFIX}[a-z0-9._-]+$": {
                **_TEXT,
                "description": "A property of your own, for the request log and its filters.",
            }
        }
    return schema


def _message(
    summary: str,
    payload: object,
    headers: str,
    schemas: _Schemas,
    content_type: str = "application/json",
) -> Json:
    message: Json = {"summary": summary, "contentType": content_type}
    if headers:
        message["headers"] = _ref("schemas", headers)
    if payload is None:
        message["payload"] = {"type": "string", "maxLength": 0, "description": "Empty."}
        message["contentType"] = "application/octet-stream"
    else:
        message["payload"] = {} if payload == {} else schemas.ref(payload)
    return message


def _operations(name: str, message: str, talk: _Talk) -> Json:
    found: Json = {}
    for action, roles in (("send", talk.senders), ("receive", talk.receivers)):
        for role in roles:
            operation: Json = {
                "action": action,
                "channel": {"$ref": f"#/channels/{name}"},
                "tags": [_ref("tags", role)],
                "messages": [{"$ref": f"#/channels/{name}/messages/{message}"}],
            }
            if talk.replies:
                operation["reply"] = {
                    "channel": {"$ref": "#/channels/inbox"},
                    "messages": [
                        {"$ref": f"#/channels/inbox/messages/{reply}"} for reply in talk.replies
                    ],
                }
            if talk.queue and action == "receive":
                operation["bindings"] = {"nats": {"queue": talk.queue, "bindingVersion": "0.1.0"}}
            found[f"{role}{_camel(action)}s{_camel(name)}"] = operation
    return found


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m breakwater_protocol.asyncapi")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write there instead of stdout")
    path: Path | None = parser.parse_args(arguments).write
    if path is None:
        sys.stdout.write(text())
    else:
        path.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
