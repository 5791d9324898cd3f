"""Subjects: each one once, bound to the one type it carries.

A token made from anything that is not ours (a model, a tenant, an account) goes through one codec:
`[A-Za-z0-9_-]` is kept and every other byte becomes `=XX`, so the result is a single token, legal in
subjects and in KV keys, and reversible.
"""

import re
from typing import Final, Generic, TypeVar

import msgspec

from breakwater_protocol import cache, commands, events, flights, inspection, ledger

T = TypeVar("T")

TOKEN_MAX: Final = 1024
"""Longest encoded token, in bytes. The server's control line holds 4,096 for the whole command."""

_KEEP: Final = re.compile(rb"[^A-Za-z0-9_-]")
_KEPT: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPE: Final = re.compile(rb"=([0-9A-F]{2})")
_TOKEN: Final = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_EMPTY: Final = "="


class BadToken(ValueError):
    """A name that cannot be a subject token: too long, or not made by `encode_token`."""


def encode_token(text: str) -> str:
    """One legal subject token for any text: `openai/gpt-4.1` -> `openai=2Fgpt-4=2E1`.

    The empty text is `=`. Raises `BadToken` when the result would exceed `TOKEN_MAX` bytes.
    """
    if len(text) <= TOKEN_MAX and _KEPT.fullmatch(text):
        return text
    if not text:
        return _EMPTY
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > TOKEN_MAX:
        raise BadToken(f"a name may have {TOKEN_MAX} bytes at most, this one has {len(raw)}")
    token = _KEEP.sub(lambda m: b"=%02X" % m.group()[0], raw).decode("ascii")
    if len(token) > TOKEN_MAX:
        raise BadToken(f"a name may have {TOKEN_MAX} bytes once escaped, this one has {len(token)}")
    return token


def decode_token(token: str) -> str:
    """The text that `encode_token` was given. Raises `BadToken` on anything it cannot have made."""
    if token == _EMPTY:
        return ""
    if not _TOKEN.fullmatch(token):
        raise BadToken(f"not a token of this codec: {token[:80]!r}")
    raw = _ESCAPE.sub(lambda m: bytes((int(m.group(1), 16),)), token.encode("ascii"))
    try:
        text = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise BadToken(f"not a token of this codec: {token[:80]!r}") from None
    if encode_token(text) != token:
        raise BadToken(f"not a token of this codec: {token[:80]!r}")
    return text


class Subject(Generic[T]):
    """A subject template bound to the type it carries.

    `subject.at("a", "b")` fills the `{}` places in order, each through the token codec;
    `subject.any()` is the wildcard over all of them.
    """

    __slots__ = ("_decoder", "_encoder", "_fixed", "carries", "summary", "template")

    def __init__(self, template: str, carries: type[T], summary: str) -> None:
        self.template = template
        self.carries = carries
        self.summary = summary
        self._fixed = tuple(re.split(r"\{[a-z_]+\}", template))
        self._decoder = msgspec.json.Decoder(carries)
        self._encoder = msgspec.json.Encoder()

    def at(self, *names: str) -> str:
        fixed = self._fixed
        if len(names) != len(fixed) - 1:
            raise TypeError(f"{self.template} takes {len(fixed) - 1} names, got {len(names)}")
        subject = fixed[0]
        for name, rest in zip(names, fixed[1:], strict=True):
            subject += encode_token(name) + rest
        return subject

    def any(self) -> str:
        return "*".join(self._fixed)

    def names(self, subject: str) -> tuple[str, ...]:
        """The decoded names of a concrete subject of this template. Raises `BadToken`."""
        own, got = self.template.split("."), subject.split(".")
        if len(own) != len(got):
            raise BadToken(f"{subject[:80]!r} is not of the form {self.template}")
        found = []
        for mine, theirs in zip(own, got, strict=True):
            if mine.startswith("{"):
                found.append(decode_token(theirs))
            elif mine != theirs:
                raise BadToken(f"{subject[:80]!r} is not of the form {self.template}")
        return tuple(found)

    def encode(self, value: T) -> bytes:
        return self._encoder.encode(value)

    def decode(self, data: bytes) -> T:
        """Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
        return self._decoder.decode(data)


class Subjects:
    """Every subject of one Breakwater, under its root (default `bw.v1`)."""

    def __init__(self, root: str = "bw.v1") -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", root):
            raise BadToken(f"the subject root must be plain tokens joined by dots, not {root!r}")
        self.root = root
        self._broadcast = tuple(
            f"{root}.{kind}." for kind in ("evt", "hb", "cancel", "metrics", "breaker", "probe")
        )

        def subject(rest: str, carries: type[T], summary: str) -> Subject[T]:
            return Subject(f"{root}.{rest}", carries, summary)

        # Requests of callers; their bodies are the provider APIs' own, so they carry raw JSON.
        self.chat = subject(
            "chat.{tenant}", msgspec.Raw, "An OpenAI chat-completions body; answered on the reply."
        )
        self.embeddings = subject(
            "embeddings.{tenant}", msgspec.Raw, "An OpenAI embeddings body; answered on the reply."
        )
        self.embed = subject(
            "embed.{tenant}",
            msgspec.Raw,
            "As `embeddings`, of an actor or an operator for a tenant: no key is asked for.",
        )
        self.messages = subject(
            "messages.{tenant}", msgspec.Raw, "An Anthropic Messages body; answered in kind."
        )
        self.responses = subject(
            "responses.{tenant}", msgspec.Raw, "An OpenAI Responses body; answered in kind."
        )
        self.generate = subject(
            "generate.{tenant}",
            msgspec.Raw,
            "A Gemini generateContent body with `model` and `stream` beside it; answered in kind.",
        )
        self.models = subject(
            "models.{tenant}", msgspec.Raw, "An empty body; answered with OpenAI's list of models."
        )
        self.work = subject("work.{worker}", commands.Work, "One attempt for that worker to make.")
        self.ping = subject(
            "ping.{worker}", msgspec.Raw, "Is that worker there? No responders means it is gone."
        )
        self.tap = subject(
            "tap.{worker}", commands.Tap, "Another router hears the answer of that call too."
        )
        self.cancel = subject(
            "cancel.{request}", commands.Cancel, "The caller no longer wants this request's answer."
        )
        self.cache_lookup = subject(
            "cache.{shard}.lookup", cache.Lookup, "Is there an answer to what means the same?"
        )
        self.cache_written = subject(
            "cache.written",
            cache.LookWritten,
            "Which written questions are near to this one? No responders without embeddings.",
        )
        self.cache_store = subject(
            "cache.{shard}.store", cache.Store, "A complete answer that may be given again."
        )
        self.cache_feedback = subject(
            "cache.{shard}.feedback", cache.Feedback, "What a caller thought of a cached answer."
        )
        self.cache_stats = subject(
            "cache.{shard}.stats", cache.StatsRequest, "What does the shard hold and do?"
        )
        self.cache_purge = subject(
            "cache.{shard}.purge", cache.Purge, "Forget these entries of the shard."
        )
        self.cache_inspect = subject(
            "cache.{shard}.inspect",
            inspection.Inspect,
            "What is known of an entry, or would become of a request, and why?",
        )
        self.flight = subject(
            "flight.{router}", flights.FlightAsk, "Routers agree on who makes a call for all."
        )
        self.heartbeat = subject(
            "hb.{actor}.{id}", events.Heartbeat, "An actor lives: load, capacity, version, view."
        )
        self.health = subject(
            "evt.health.{target}.{state}",
            events.BreakerChanged,
            "A target's breaker changed state.",
        )
        self.attempt = subject(
            "evt.attempt.{target}.{outcome}", events.AttemptFinished, "A provider call ended."
        )
        self.request = subject(
            "evt.request.{tenant}.{outcome}", events.RequestFinished, "A request was answered."
        )
        self.cache = subject(
            "evt.cache.{verdict}", events.CacheChanged, "Something in the cache changed for all."
        )
        self.alert = subject("evt.alert.{kind}", events.Alert, "Somebody should look at this.")
        self.config = subject(
            "evt.config.{revision}", events.ConfigChanged, "A new revision of the configuration."
        )
        self.metrics = subject(
            "metrics.{group}", msgspec.Raw, "Every process of the group answers with its metrics."
        )
        # `partition` is `p0` to `p15`; only the partition's writer subscribes.
        self.lease = subject(
            "ledger.{partition}.lease", ledger.LeaseAsk, "Lend me something of these limits."
        )
        self.report = subject(
            "ledger.{partition}.report", ledger.Reports, "What these leases have spent so far."
        )
        self.books = subject(
            "ledger.{partition}.query", ledger.Query, "What do the books of that partition say?"
        )
        self.operate = subject(
            "ledger.{partition}.command", ledger.Operate, "An operator's change of the books."
        )
        self.ledger_log = subject(
            "ledger.{partition}.log", ledger.Record, "The log that the books are folded from."
        )
        self.budget = subject(
            "evt.budget.{account}.{kind}", events.BudgetChanged, "A line of the books changed."
        )
        self.breaker = subject(
            "breaker.{action}",
            commands.BreakerCommand,
            "An operator lists, trips or resets breakers; health's leader answers.",
        )
        self.probe = subject(
            "probe.{target}.{epoch}",
            commands.ProbeClaim,
            "The one half-open probe of an epoch: whoever wants it says so, and the first to store it has it.",
        )

    @property
    def events(self) -> str:
        """Everything that happened."""
        return f"{self.root}.evt.>"

    def every(self) -> tuple[Subject[object], ...]:
        """All of them, for the generated AsyncAPI document."""
        return tuple(value for value in vars(self).values() if isinstance(value, Subject))

    def is_broadcast(self, subject: str) -> bool:
        """True for subjects that all listeners on the bus must hear, wherever they run."""
        return subject.startswith(self._broadcast)
