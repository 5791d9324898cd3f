"""Measures: fold ended attempts into what a strategy compares, latency and the use of rates.

As the boards of `views.py` they are values without a clock: `now` is the receiver's monotonic time in
seconds. Everything they hold is bounded, and what is old is forgotten.
"""

from collections.abc import Collection
from math import exp
from typing import Final

from breakwater_protocol.events import AttemptFinished, RateLimits
from breakwater_protocol.views import TARGETS_MAX

BLEND_S: Final = 10.0
"""Time constant with which newer, shorter times take over from an older, longer one."""
FADE_S: Final = 60.0
"""Time constant with which a time that nothing confirms fades, so that a slow target is tried again."""
FORGET_S: Final = 300.0
FAILED_MS: Final = 1_000.0
"""The least a failed call counts for: its caller has to wait for another one."""

WINDOW_S: Final = 60.0
SLOTS: Final = 12
_RING: Final = SLOTS + 1
"""The slot that is being filled is not a whole one: without one more, use would leave too early."""

NAMES_MAX: Final = 2_048
"""Logical names whose mean output is kept; callers choose them where a model's name is a prefix."""
MEAN_SHARE: Final = 0.05


class _Peak:
    """Peak EWMA: jumps up to a longer time at once, comes down with time."""

    __slots__ = ("at", "ms")

    def __init__(self, ms: float, now: float) -> None:
        self.ms = ms
        self.at = now

    def add(self, ms: float, now: float) -> None:
        here = self.value(now) or 0.0
        if ms < here:
            share = exp(-max(0.0, now - self.at) / BLEND_S)
            # Two at one instant count as well: a slow answer and many quick ones leave a mean.
            share = min(share, 0.95)
            ms = here * share + ms * (1.0 - share)
        self.ms, self.at = ms, now

    def value(self, now: float) -> float | None:
        age = now - self.at
        if age >= FORGET_S:
            return None
        return self.ms * exp(-age / FADE_S) if age > 0 else self.ms


class LatencyBoard:
    """How long each target lately took to its first token (streams) or to its answer (others).

    Finagle's "Peak EWMA" (Twitter, 2016), with failures as long times, so that a target which fails
    quickly does not look quick.
    """

    __slots__ = ("_streams", "_wholes", "refused")

    def __init__(self) -> None:
        self._streams: dict[str, _Peak] = {}
        self._wholes: dict[str, _Peak] = {}
        self.refused = 0
        """Targets not kept because the board was full."""

    def __len__(self) -> int:
        return len(self._streams.keys() | self._wholes.keys())

    def fold(self, attempt: AttemptFinished, now: float) -> None:
        """An attempt ended. The caller's leaving and its own mistakes say nothing."""
        if attempt.in_stall:
            return
        peaks = self._streams if attempt.stream else self._wholes
        peak = peaks.get(attempt.deployment)
        if attempt.against_target:
            known = (peak.value(now) if peak else None) or 0.0
            ms = max(attempt.duration_ms, 2.0 * known, FAILED_MS)
        elif attempt.outcome == "ok":
            first_ms = attempt.first_token_ms if attempt.stream else None
            ms = attempt.duration_ms if first_ms is None else first_ms
        else:
            return
        if not 0.0 <= ms < float("inf"):
            return
        if peak is not None:
            peak.add(ms, now)
        elif len(peaks) < TARGETS_MAX:
            peaks[attempt.deployment] = _Peak(ms, now)
        else:
            self.refused += 1

    def latency_ms(self, target: str, *, stream: bool, now: float) -> float | None:
        """To the first token of a stream, else to the whole answer; None: not known, or long ago."""
        peak = (self._streams if stream else self._wholes).get(target)
        return None if peak is None else peak.value(now)

    def retain(self, targets: Collection[str]) -> None:
        """Forget every target that is not one of these."""
        for peaks in (self._streams, self._wholes):
            for target in [known for known in peaks if known not in targets]:
                del peaks[target]


class _Said:
    """A provider's word on one of its limits."""

    __slots__ = ("at", "left", "limit", "until", "used")

    def __init__(self, limit: int | None, left: int, reset_s: float | None, at: float) -> None:
        self.limit = limit
        self.left = left
        self.at = at
        self.until = at + (WINDOW_S if reset_s is None else reset_s)
        self.used = 0
        """Since then, by calls that ended later and did not say."""


class _Use:
    __slots__ = (
        "_requests",
        "_slot",
        "_tokens",
        "requests",
        "said_requests",
        "said_tokens",
        "tokens",
    )

    def __init__(self, now: float) -> None:
        self._requests = [0] * _RING
        self._tokens = [0] * _RING
        self._slot = int(now * SLOTS // WINDOW_S)
        self.requests = 0
        """Over the window; `tokens` alike."""
        self.tokens = 0
        self.said_requests: _Said | None = None
        self.said_tokens: _Said | None = None

    def advance(self, now: float) -> None:
        slot = int(now * SLOTS // WINDOW_S)
        if slot <= self._slot:
            return
        for passed in range(self._slot + 1, min(slot, self._slot + _RING) + 1):
            at = passed % _RING
            self.requests -= self._requests[at]
            self.tokens -= self._tokens[at]
            self._requests[at] = self._tokens[at] = 0
        self._slot = slot

    def add(self, tokens: int, now: float) -> None:
        self.advance(now)
        at = self._slot % _RING
        self._requests[at] += 1
        self._tokens[at] += tokens
        self.requests += 1
        self.tokens += tokens

    def oldest_leaves_s(self, now: float) -> float:
        """Until the oldest use that counts leaves the window."""
        for age in range(SLOTS, -1, -1):
            if self._requests[(self._slot - age) % _RING]:
                return max(0.0, (self._slot - age + _RING) * WINDOW_S / SLOTS - now)
        return 0.0


class UsageBoard:
    """Requests and tokens of each target over the last minute, and what its provider said is left.

    What providers say with an answer is the truth until its reset; without that, use is counted from
    what ended within the last minute and compared with the configured `rpm` and `tpm`.
    """

    __slots__ = ("_means", "_uses", "refused")

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}
        self._means: dict[str, float] = {}
        self.refused = 0
        """Targets not kept because the board was full."""

    def __len__(self) -> int:
        return len(self._uses)

    def fold(self, attempt: AttemptFinished, now: float) -> None:
        usage = attempt.usage
        tokens = 0 if usage is None else max(0, usage.input) + max(0, usage.output)
        if usage is not None and attempt.outcome == "ok" and attempt.api != "embeddings":
            self._learn(attempt.model, max(0, usage.output))
        use = self._uses.get(attempt.deployment)
        if use is None:
            if len(self._uses) >= TARGETS_MAX:
                self.refused += 1
                return
            use = self._uses[attempt.deployment] = _Use(now)
        use.add(tokens, now)
        limits = attempt.limits or _NOTHING_SAID
        # Headers come before the first token, events after the last.
        after_ms = attempt.duration_ms - (attempt.first_token_ms or attempt.duration_ms)
        at = now - max(0.0, after_ms) / 1000
        said = (limits.requests, limits.requests_left, limits.requests_reset_s)
        use.said_requests = _hear(use.said_requests, said, 1, at)
        said = (limits.tokens, limits.tokens_left, limits.tokens_reset_s)
        use.said_tokens = _hear(use.said_tokens, said, tokens, at)

    def used(
        self, target: str, rpm: int | None, tpm: int | None, *, now: float, in_flight: int = 0
    ) -> float | None:
        """The larger used part of the two rates, 1 and more at the limit; None: no limit is known.

        `in_flight`: calls that were sent and have not ended: each a request, of as many tokens as the
        last minute's had on average.
        """
        use = self._uses.get(target)
        if use is None:
            return in_flight / rpm if rpm else (None if tpm is None else 0.0)
        use.advance(now)
        requests = tokens = None
        if rpm is not None or use.said_requests is not None:
            requests = _part(use.said_requests, use.requests, rpm, in_flight, now)
        if tpm is not None or use.said_tokens is not None:
            mean = use.tokens / use.requests if use.requests else 0.0
            tokens = _part(use.said_tokens, use.tokens, tpm, in_flight * mean, now)
        if requests is None or tokens is None:
            return tokens if requests is None else requests
        return max(requests, tokens)

    def wait_s(self, target: str, rpm: int | None, tpm: int | None, *, now: float) -> float:
        """How long until the target has something left again; 0: it has, or no limit is known."""
        use = self._uses.get(target)
        if use is None:
            return 0.0
        use.advance(now)
        return max(
            _wait(use, use.said_requests, use.requests, rpm, now),
            _wait(use, use.said_tokens, use.tokens, tpm, now),
        )

    def mean_output(self, model: str) -> float | None:
        """Tokens that calls for this logical model lately made; None: not known."""
        return self._means.get(model)

    def retain(self, targets: Collection[str]) -> None:
        """Forget every target that is not one of these."""
        for target in [known for known in self._uses if known not in targets]:
            del self._uses[target]

    def _learn(self, model: str, output: int) -> None:
        mean = self._means.pop(model, None)
        if mean is None:
            mean = float(output)
            if len(self._means) >= NAMES_MAX:
                del self._means[next(iter(self._means))]
        self._means[model] = mean + MEAN_SHARE * (output - mean)


_NOTHING_SAID: Final = RateLimits()


def _hear(
    last: _Said | None, said: tuple[int | None, int | None, float | None], spent: int, at: float
) -> _Said | None:
    limit, left, reset_s = said
    if left is not None and (last is None or at >= last.at):
        return _Said(limit or (last.limit if last else None), left, reset_s, at)
    if last is not None and left is None:
        last.used += spent
    return last


def _part(
    said: _Said | None, used: int, limit: int | None, under_way: float, now: float
) -> float | None:
    if said is not None and now < said.until:
        left = said.left - said.used - under_way
        whole = said.limit or limit
        if whole:
            return max(0.0, 1.0 - left / whole)
        return 1.0 if left <= 0 else None
    return (used + under_way) / limit if limit else None


def _wait(use: _Use, said: _Said | None, used: int, limit: int | None, now: float) -> float:
    if said is not None and now < said.until:
        return said.until - now if said.left - said.used <= 0 else 0.0
    return use.oldest_leaves_s(now) if limit and used >= limit else 0.0
