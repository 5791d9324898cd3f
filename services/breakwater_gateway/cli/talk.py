"""`breakwater chat`, `models` and `events`: the client at the command line."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import click
import msgspec

from breakwater_gateway.cli import output, reach
from breakwater_protocol.subjects import BadToken, Subject, Subjects, decode_token

if TYPE_CHECKING:
    from breakwater_protocol import AnswerInfo, CallOptions, Client
    from breakwater_protocol.inboxes import Heard

Command = TypeVar("Command", bound=Callable[..., None])

TEXT_MAX: Final = 16 * 1024 * 1024
"""Characters read from stdin; the gateway's own limit is lower."""


def reaches_nats(command: Command) -> Command:
    """The options that say which gateway is meant."""
    tenant = click.option("--tenant", default="default", show_default=True, help="Who asks.")
    for option in (reach.root, tenant, reach.creds, reach.nats):
        command = option(command)
    return command


def as_json_option(command: Command) -> Command:
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object a line; errors too, on stderr."
    )(command)


def client_for(
    nats_url: str, creds: str | None, tenant: str, root: str, *, as_json: bool
) -> "Client":
    from breakwater_protocol import Client

    try:
        client = Client(nats_url, tenant, creds, root, name="cli")
        client.subjects.chat.at(tenant)
    except BadToken as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)
    return client


@click.command(help="Ask a model over NATS. TEXT is the question; - reads it from stdin.")
@click.argument("text")
@click.option("-m", "--model", help="Default: the first of `breakwater models`.")
@click.option("--stream", is_flag=True, help="Print the answer while it is made.")
@click.option("--system", metavar="TEXT", help="A system message before the question.")
@click.option("--user", help="Whose use it is.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS")
@as_json_option
@reaches_nats
def chat(
    text: str,
    model: str | None,
    stream: bool,
    system: str | None,
    user: str | None,
    timeout: float | None,
    as_json: bool,
    nats_url: str,
    creds: str | None,
    tenant: str,
    root: str,
) -> None:
    question = sys.stdin.read(TEXT_MAX) if text == "-" else text
    if not question.strip():
        raise click.UsageError("there is no question: TEXT is empty")
    client = client_for(nats_url, creds, tenant, root, as_json=as_json)
    asked = [{"role": "system", "content": system}] if system else []
    asked.append({"role": "user", "content": question})
    options: CallOptions = {}
    if user is not None:
        options["user"] = user
    if timeout is not None:
        options["timeout_s"] = timeout

    async def work() -> int:
        async with client:
            named = model or await _first_model(client, as_json=as_json)
            try:
                if stream:
                    return await _stream(client, named, asked, options, as_json=as_json)
                return await _complete(client, named, asked, options, as_json=as_json)
            except ValueError as error:  # an option that cannot be a header
                output.fail(str(error), code=output.USAGE, as_json=as_json)

    output.run(work, as_json=as_json)


async def _first_model(client: "Client", *, as_json: bool) -> str:
    found = [entry.id for entry in await client.models() if not entry.id.endswith("*")]
    if not found:
        output.fail(
            "this gateway lists no model by name; name one: -m openai/gpt-4o",
            code=output.USAGE,
            as_json=as_json,
        )
    return found[0]


async def _complete(
    client: "Client",
    model: str,
    messages: list[dict[str, str]],
    options: "CallOptions",
    *,
    as_json: bool,
) -> int:
    answer = await client.complete(model=model, messages=messages, **options)
    if as_json:
        output.say_json(
            {"text": answer.text, "info": answer.info, "response": msgspec.Raw(answer.raw)}
        )
    else:
        output.say(answer.text)
        for call in answer.tool_calls:
            output.say(f"{call.function.name}({call.function.arguments})")
    return _ended(answer.info, as_json=as_json)


async def _stream(
    client: "Client",
    model: str,
    messages: list[dict[str, str]],
    options: "CallOptions",
    *,
    as_json: bool,
) -> int:
    wrote = False
    async with client.chat(model=model, messages=messages, **options) as stream:
        try:
            async for chunk in stream:
                if as_json:
                    output.say_json(chunk)
                    continue
                for choice in chunk.choices:
                    if choice.index == 0 and choice.delta.content:
                        output.say(choice.delta.content, newline=False)
                        wrote = True
        finally:
            if wrote:
                output.say("")
    if as_json:
        output.say_json({"info": stream.info})
    return _ended(stream.info, as_json=as_json)


def _ended(info: "AnswerInfo", *, as_json: bool) -> int:
    """Says what happened on stderr, to a person; a partial answer is a failure."""
    if not as_json and sys.stderr.isatty():
        facts = [
            info.model,
            info.deployment and f"by {info.deployment}",
            info.rung,
            f"{info.attempts} attempt{'' if info.attempts == 1 else 's'}" if info.attempts else "",
            "" if info.cost_usd is None else f"${info.cost_usd:.9f}".rstrip("0").rstrip("."),
            "" if info.overhead_ms is None else f"{info.overhead_ms:.1f} ms of ours",
        ]
        output.note(click.style(" · ".join(fact for fact in facts if fact), dim=True))
    if not info.partial:
        return 0
    if not as_json:
        output.note(f"The answer is partial: {info.partial}")
    return output.FAILED


@click.command(help="List the models that can be asked.")
@as_json_option
@reaches_nats
def models(as_json: bool, nats_url: str, creds: str | None, tenant: str, root: str) -> None:
    client = client_for(nats_url, creds, tenant, root, as_json=as_json)

    async def work() -> int:
        async with client:
            found = await client.models()
        if as_json:
            for entry in found:
                output.say_json(entry)
        else:
            output.table(("model", "owned by"), [(entry.id, entry.owned_by) for entry in found])
        return 0

    output.run(work, as_json=as_json)


@click.command(
    help="Follow what happens on the bus until Ctrl-C. SUBJECT: health, attempt, request, alert,"
    " budget, config, hb, health.openai=2Fgpt-4o, or any subject with wildcards."
)
@click.argument("subject", default="")
@click.option("-n", "--count", type=click.IntRange(1), help="End after that many.")
@as_json_option
@reaches_nats
def events(
    subject: str,
    count: int | None,
    as_json: bool,
    nats_url: str,
    creds: str | None,
    tenant: str,
    root: str,
) -> None:
    client = client_for(nats_url, creds, tenant, root, as_json=as_json)
    pattern = subject_of(subject, root)
    line = EventLines(client.subjects)

    async def work() -> int:
        left = count
        async with client:
            heard_all = client.listen(pattern)
            try:
                async for heard in heard_all:
                    if heard.missed:
                        output.note(f"{heard.missed} more came than could be printed")
                    if as_json:
                        output.say_json(line.fields(heard))
                    else:
                        output.say(line.text(heard, at=time.time()))
                    left = None if left is None else left - 1
                    if left == 0:
                        break
            except ValueError as error:
                output.fail(str(error), code=output.USAGE, as_json=as_json)
            finally:
                await heard_all.aclose()
        return 0

    output.run(work, as_json=as_json, interrupted=0)


_EVENTS: Final = frozenset(
    {"health", "attempt", "request", "alert", "config", "budget", "cache", "actor"}
)
_BESIDES: Final = {"hb": 2, "heartbeat": 2, "cancel": 1, "work": 1}
"""Short forms that are no events, and how many names follow them."""


def subject_of(short: str, root: str) -> str:
    """The subject that a short form means: `health` is `bw.v1.evt.health.>`, nothing is every event."""
    if not short:
        return f"{root}.evt.>"
    first, _, rest = short.partition(".")
    if first in _EVENTS:
        below = f"{root}.evt.{short}"
        # `health.<target>` is short for all its states.
        return below if rest.endswith(("*", ">")) or rest.count(".") else f"{below}.>"
    if first in _BESIDES:
        named = f"{root}.{'hb' if first == 'heartbeat' else first}"
        return f"{named}.{rest}" if rest else f"{named}.>"
    return short


class EventLines:
    """Messages of the bus as lines, decoded by the subject they came on."""

    def __init__(self, subjects: Subjects) -> None:
        self._root = subjects.root + "."
        self._subjects = [
            (subject.any().split("."), subject)
            for subject in subjects.every()
            if subject.carries is not msgspec.Raw
        ]

    def fields(self, heard: "Heard") -> dict[str, object]:
        """For JSON: what is no JSON comes as text."""
        found: dict[str, object] = {"subject": heard.subject}
        if heard.data:
            try:
                found["data"] = msgspec.json.decode(heard.data)
            except (msgspec.DecodeError, UnicodeDecodeError):
                found["text"] = heard.data.decode("utf-8", "replace")
        for header in ("ce-id", "ce-time"):
            if header in heard.headers:
                found[header.replace("-", "_")] = heard.headers[header]
        return found

    def text(self, heard: "Heard", *, at: float) -> str:
        """`12:34:56.789 health openai/gpt-4o open  cause=consecutive …`; `at` is when it came."""
        subject = heard.subject.removeprefix(self._root).removeprefix("evt.")
        names = " ".join(_decoded(token) for token in subject.split("."))
        kind = self._kind(heard.subject)
        facts = ""
        if kind is not None:
            try:
                value = kind.decode(heard.data)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                facts = f"undecodable: {error}"
            else:
                at = getattr(value, "at", at)
                facts = " ".join(_facts(msgspec.to_builtins(value), already=names))
        clock = time.strftime("%H:%M:%S", time.localtime(at))
        # A line is a line, whatever a field holds.
        return " ".join(
            f"{clock}.{int(at * 1000) % 1000:03d} {names}  {facts}".split("\n")
        ).rstrip()

    def _kind(self, subject: str) -> Subject[object] | None:
        tokens = subject.split(".")
        for pattern, kind in self._subjects:
            if len(pattern) == len(tokens) and all(
                mine in {"*", theirs} for mine, theirs in zip(pattern, tokens, strict=True)
            ):
                return kind
        return None


def _decoded(token: str) -> str:
    try:
        return decode_token(token)
    except BadToken:
        return token


def _facts(value: object, *, already: str) -> list[str]:
    """`name=value` of what says something: no empty fields, nothing that the subject has said."""
    if not isinstance(value, dict):
        return []
    said = set(already.split(" "))
    found: list[str] = []
    for name, field in value.items():
        if name == "at" or not field:
            continue
        if isinstance(field, str) and field in said:
            continue
        if isinstance(field, float):
            shown = f"{field:.3f}".rstrip("0").rstrip(".")
        elif isinstance(field, str) and field.isprintable() and " " not in field:
            shown = field
        else:
            shown = msgspec.json.encode(field).decode()
        found.append(f"{name}={shown}")
    return found
