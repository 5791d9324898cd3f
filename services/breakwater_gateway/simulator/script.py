"""What a simulated provider is told to do: scripts as values, and the book that decides by them.

A script applies to a lane (one simulated provider), a model and a key; of those that match, the most
specific one counts, whole: key before model before lane. The book is told `now` (seconds, monotonic) and
a seed of chance; it holds what a real provider holds: rate-limit buckets, calls in flight, faults used.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=0, le=100_000_000)]
Positive = Annotated[int, Meta(ge=1, le=100_000_000)]
Duration = Annotated[float, Meta(ge=0, le=86_400_000)]
Name = Annotated[str, Meta(max_length=512)]

FaultClass = Literal[
    # Answered with an error of the provider's own shape.
    "rate_limited",
    "quota_exhausted",
    "request_over_limit",
    "context_length",
    "content_filter",
    "invalid_request",
    "authentication",
    "permission",
    "model_not_found",
    "overloaded",
    "server_error",
    "error_in_200",
    # Answered with what no client should have to read.
    "html_502",
    "empty_body",
    "half_json",
    "malformed_tool_call",
    "malformed_chunk",
    # Answered well up to a point.
    "filtered_answer",
    "stall",
    "cut",
    "end_without_done",
    # Not answered.
    "hang",
    "reset",
]
RetryForm = Literal["seconds", "ms", "both", "date", "text", "none"]


class Fault(Struct, frozen=True, forbid_unknown_fields=True, rename={"kind": "class"}):
    """One way to fail. Without `probability`, `times` or a window it always happens."""

    kind: FaultClass
    probability: Annotated[float, Meta(ge=0, le=1)] = 1.0
    times: Count | None = None
    """Only the next N requests that would meet it."""
    from_s: Duration = 0.0
    until_s: Duration | None = None
    """A window, in seconds since the script was set."""
    retry_after_s: Duration | None = None
    retry_after_form: RetryForm = "seconds"
    """How the wait is told: `retry-after` in seconds or as a date, `retry-after-ms`, or in the message only."""
    after_tokens: Count = 0
    """For `stall` and `cut`: tokens that are still sent."""
    before_first: bool = False
    """For `error_in_200` of a stream: the error is its very first event."""
    message: str | None = None
    headers: dict[str, str] = {}


class Script(Struct, frozen=True, forbid_unknown_fields=True):
    """A provider's behaviour. The defaults answer at once, correctly, and without limits."""

    lane: Name = ""
    model: Name = ""
    key: Name = ""
    """Whom it applies to; empty: any."""

    # Time.
    first_token_ms: Duration = 0.0
    first_token_jitter_ms: Duration = 0.0
    """Up to this much more, drawn from the request."""
    tokens_per_s: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    """0: all at once."""
    stall_before_first: bool = False
    """Accept and hang."""
    stall_after_tokens: Count | None = None
    stall_s: Duration = 0.0
    """How long a stall lasts; 0: for ever."""
    cut_after_tokens: Count | None = None
    cut_with: Literal["reset", "close"] = "reset"
    end_without_done: bool = False
    drip: bool = False
    """One byte a write."""
    split_bytes: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    """A write carries from 1 to so many bytes of a stream, wherever that cuts it; 0: whole events."""
    crlf: bool = False
    """Lines of a stream end in CR LF."""
    keep_alive_every: Count = 0
    """Before each so many events of a stream comes one that says nothing: a comment or a ping."""

    # Content.
    mode: Literal["lorem", "echo"] = "lorem"
    text: str | None = None
    """The answer, whatever was asked."""
    tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 16
    """Of a lorem answer."""
    chunk_tokens: Annotated[int, Meta(ge=1, le=100_000)] = 1
    thinking: str | None = None
    """What it thinks before it answers, where the API shows that."""
    obfuscation: bool = False
    """Pads each chunk as OpenAI does against traffic analysis (Bedrock always does, its own way)."""
    dialect: Literal["", "openai", "mistral"] = ""
    """Whose manners `/v1/chat/completions` has; empty: Mistral's in a lane of that name, else OpenAI's."""
    tool_calls: Literal["forced", "always", "never"] = "forced"
    """Whether tools are called: when the request forces one, whenever there are any, or never."""
    parallel_calls: Annotated[int, Meta(ge=1, le=32)] = 1
    """How many calls at once, of the tools in turn, unless the request wants no parallel ones."""
    tool_arguments: str | None = None
    """Sent as the arguments, valid or not; else they are made to fit the tool's schema."""
    embedding_dimensions: Annotated[int, Meta(ge=1, le=16_384)] | None = None

    # Usage.
    usage: Literal["normal", "missing"] = "normal"
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    cached_tokens: Count = 0
    cache_write_tokens: Count = 0
    """Both are part of `prompt_tokens`, whatever the API adds up."""
    reasoning_tokens: Count | None = None

    # Limits.
    keys: tuple[str, ...] = ()
    """The keys that are valid; empty: any, and none."""
    models: tuple[str, ...] = ()
    """The models that exist; empty: any."""
    alternate: bool = False
    """Anthropic: refuse two turns of one role in a row, which it otherwise joins."""
    reasoning: bool | None = None
    """Whether it rejects what reasoning models reject; by default its name says."""
    capacity: Positive | None = None
    """Calls in flight beyond which it is overloaded."""
    rpm: Positive | None = None
    tpm: Positive | None = None
    """Of each key, as token buckets."""
    context_tokens: Positive | None = None

    faults: Annotated[tuple[Fault, ...], Meta(max_length=100)] = ()
    """The first that applies happens."""
    record: bool = False
    """Keep request bodies in the log."""


_PRESETS: Final = {
    script.model: script
    for script in (
        Script(model="sim-fast"),
        Script(
            model="sim-human",
            first_token_ms=300,
            first_token_jitter_ms=200,
            tokens_per_s=50,
            tokens=120,
        ),
        Script(model="sim-slow", first_token_ms=3000, tokens_per_s=5, tokens=60),
        Script(model="sim-echo", mode="echo"),
        Script(model="sim-tools", tool_calls="always"),
        Script(model="sim-reasoning", reasoning=True),
        Script(model="sim-down", faults=(Fault("server_error"),)),
        Script(model="sim-limited", rpm=60, tpm=20_000),
    )
}
"""Models whose names say how they behave, unless a script says otherwise."""

DEFAULT_MODELS: Final = (*_PRESETS, "text-embedding-3-small", "text-embedding-3-large")


class Call(Struct, frozen=True):
    """What the book needs to know of a request."""

    lane: str
    model: str
    key: str
    tokens: int
    """Of the prompt and the most that may be answered, as rate limits count."""
    prompt_tokens: int
    chance: int
    """64 bits that are the same whenever this request is."""


class Exceeded(Struct, frozen=True):
    """A limit of the script's own refuses the call."""

    limit: Literal["requests", "tokens", "request", "capacity", "context"]
    bound: int
    used: int
    requested: int
    wait_s: float = 0.0


class Rate(Struct, frozen=True):
    """How a rate limit stands."""

    name: Literal["requests", "tokens"]
    limit: int
    remaining: int
    reset_s: float
    """Until the bucket is full again."""


class Verdict(Struct, frozen=True):
    script: Script
    draw: float
    """In [0, 1), of this request and its repetition; 0 where the script leaves nothing to chance."""
    fault: Fault | None = None
    exceeded: Exceeded | None = None
    rates: tuple[Rate, ...] = ()
    """Of the key, where the script has any."""


class Bucket(Struct):
    """A token bucket: full at first, refilled continuously over a minute."""

    capacity: int
    level: float
    at: float

    def refill(self, now: float) -> None:
        self.level = min(float(self.capacity), self.level + (now - self.at) * self.capacity / 60)
        self.at = now

    def wait_s(self, amount: float) -> float:
        """Until `amount` is there; 0 when it is."""
        return max(0.0, (amount - self.level) * 60 / self.capacity)


class _Rule:
    """A script at work."""

    __slots__ = ("buckets", "in_flight", "script", "since", "used")

    def __init__(self, script: Script, since: float) -> None:
        self.script = script
        self.since = since
        self.used = [0] * len(script.faults)
        self.in_flight = 0
        self.buckets: OrderedDict[tuple[str, str, str], tuple[Bucket | None, Bucket | None]] = (
            OrderedDict()
        )


class TooManyScripts(Exception):
    """The book is full."""


class Book:
    """Scripts by whom they apply to, and their state."""

    scripts_max = 1000
    buckets_max = 10_000
    repeats_max = 50_000

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._rules: dict[tuple[str, str, str], _Rule] = {}
        self._presets: dict[str, _Rule] = {}
        self._repeats: OrderedDict[int, int] = OrderedDict()

    def put(self, scripts: Iterable[Script], *, now: float) -> None:
        """Each replaces the one with the same lane, model and key. Raises `TooManyScripts`, changing nothing."""
        given = {(s.lane, s.model, s.key): _Rule(s, now) for s in scripts}
        if len(self._rules.keys() | given.keys()) > self.scripts_max:
            raise TooManyScripts(f"no more than {self.scripts_max} scripts")
        for selector, rule in given.items():
            before = self._rules.get(selector)
            if before is not None:
                rule.in_flight = before.in_flight
            self._rules[selector] = rule

    def scripts(self) -> list[Script]:
        return [rule.script for rule in self._rules.values()]

    def clear(self) -> None:
        self._rules.clear()
        self._presets.clear()
        self._repeats.clear()

    def find(self, lane: str, model: str, key: str) -> Script:
        return self._find(lane, model, key).script

    def admit(self, call: Call, *, now: float) -> Verdict:
        """Decides for a call that is well formed, and counts it against limits if it passes.

        A script's limits come before its faults, as a provider's front door comes before its engine. Chance
        depends on the seed, the request and how often it came before: so a retry may fare otherwise, and a
        whole run can be repeated.
        """
        rule = self._find(call.lane, call.model, call.key)
        script = rule.script
        # Drawing costs memory of what came before: only for scripts that leave something to chance.
        draw = self._draw(call.chance) if script.faults or script.first_token_jitter_ms else 0.0
        rates: tuple[Rate, ...] = ()
        exceeded = _over_size(rule, call)
        if exceeded is None and (script.rpm or script.tpm):
            exceeded, rates = self._take(rule, call, now)
        if exceeded is not None:
            return Verdict(script, draw, exceeded=exceeded, rates=rates)
        fault = _choose(rule, draw, now) if script.faults else None
        return Verdict(script, draw, fault=fault, rates=rates)

    def begun(self, lane: str, model: str, key: str) -> "_Rule":
        """Counts a call as in flight; pass what it returns to `ended`."""
        rule = self._find(lane, model, key)
        rule.in_flight += 1
        return rule

    def ended(self, rule: "_Rule") -> None:
        script = rule.script
        current = rule
        if self._presets.get(script.model) is not rule:
            # A script that was replaced handed its count on.
            current = self._rules.get((script.lane, script.model, script.key), rule)
        if current.in_flight:
            current.in_flight -= 1

    def _find(self, lane: str, model: str, key: str) -> _Rule:
        rules = self._rules
        if rules:
            for selector in (
                (lane, model, key),
                ("", model, key),
                (lane, "", key),
                ("", "", key),
                (lane, model, ""),
                ("", model, ""),
                (lane, "", ""),
                ("", "", ""),
            ):
                rule = rules.get(selector)
                if rule is not None:
                    return rule
        name = model if model in _PRESETS else ""
        rule = self._presets.get(name)
        if rule is None:
            rule = self._presets[name] = _Rule(_PRESETS.get(name) or Script(), 0.0)
        return rule

    def _draw(self, chance: int) -> float:
        repeats = self._repeats
        nth = repeats.pop(chance, 0)
        repeats[chance] = nth + 1
        if len(repeats) > self.repeats_max:
            repeats.popitem(last=False)
        return mix(chance ^ mix(self.seed + nth * 0x632BE59BD9B4E019)) / 2**64

    def _take(
        self, rule: _Rule, call: Call, now: float
    ) -> tuple[Exceeded | None, tuple[Rate, ...]]:
        script = rule.script
        who = (call.lane, call.model, call.key)
        found = rule.buckets.pop(who, None)
        if found is None:
            found = (
                Bucket(script.rpm, float(script.rpm), now) if script.rpm else None,
                Bucket(script.tpm, float(script.tpm), now) if script.tpm else None,
            )
        rule.buckets[who] = found
        if len(rule.buckets) > self.buckets_max:
            rule.buckets.popitem(last=False)
        exceeded = None
        names: tuple[Literal["requests", "tokens"], ...] = ("requests", "tokens")
        wanted = tuple(zip(names, found, (1, call.tokens), strict=True))
        for name, bucket, amount in wanted:
            if bucket is None:
                continue
            bucket.refill(now)
            if exceeded is None and bucket.level < amount:
                used = bucket.capacity - math.floor(bucket.level)
                exceeded = Exceeded(name, bucket.capacity, used, amount, bucket.wait_s(amount))
        rates = []
        for name, bucket, amount in wanted:
            if bucket is None:
                continue
            if exceeded is None:
                bucket.level -= amount
            left = max(0, math.floor(bucket.level))
            rates.append(Rate(name, bucket.capacity, left, bucket.wait_s(bucket.capacity)))
        return exceeded, tuple(rates)


def _over_size(rule: _Rule, call: Call) -> Exceeded | None:
    script = rule.script
    if script.context_tokens is not None and call.prompt_tokens > script.context_tokens:
        return Exceeded("context", script.context_tokens, 0, call.prompt_tokens)
    if script.tpm is not None and call.tokens > script.tpm:
        return Exceeded("request", script.tpm, 0, call.tokens)
    if script.capacity is not None and rule.in_flight >= script.capacity:
        return Exceeded("capacity", script.capacity, rule.in_flight, 1, 1.0)
    return None


def _choose(rule: _Rule, draw: float, now: float) -> Fault | None:
    age = now - rule.since
    for i, fault in enumerate(rule.script.faults):
        if age < fault.from_s or (fault.until_s is not None and age >= fault.until_s):
            continue
        if fault.times is not None and rule.used[i] >= fault.times:
            continue
        if (
            fault.probability < 1.0
            and mix(int(draw * 2**64) ^ (i + 1)) / 2**64 >= fault.probability
        ):
            continue
        rule.used[i] += 1
        return fault
    return None


def mix(value: int) -> int:
    """64 well-mixed bits of `value`: the finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)
