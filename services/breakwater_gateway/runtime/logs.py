"""Log lines: structlog to bytes, secrets scrubbed, written without ever blocking the loop or raising.

One line is one JSON object (`time`, `level`, then the facts; `event` is the fixed name), or one
readable line when a person watches. The libraries' own `logging` ends up in the same place. A line
never holds a prompt, an answer or a key: what looks like a key, or is known to be one, is masked in
the finished line, wherever in it it was.
"""

import logging
import os
import re
import select
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Literal, cast
from urllib.parse import quote

import msgspec
import structlog

if TYPE_CHECKING:
    from breakwater_gateway.runtime.telemetry import Log

Format = Literal["json", "console"]
Level = Literal["debug", "info", "warning", "error"]

LINE_MAX: Final = 16_384
"""Bytes of a line; the fields of a longer one are cut."""
FIELD_MAX: Final = 512
"""Characters that each field keeps of a line that was too long or could not be encoded."""
TRACEBACK_MAX: Final = 8_192
PENDING_MAX: Final = 256 * 1024
"""Bytes kept while standard error takes nothing; further lines are dropped and counted."""
SECRET_MIN: Final = 8
"""Shorter values are not masked: they would match ordinary words."""
MASK: Final = b"***"

_LEVELS: Final[dict[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_NOISY: Final = ("httpx", "httpcore", "hpack", "h2", "httpcore2", "httpx2")
"""Libraries whose debug lines hold headers, or one line a frame."""

_PLAIN: Final = frozenset({int, float, bool, type(None)})
_CLEAN_MAX: Final = 4_096
_CLEAN_TEXT_MAX: Final = 128

Event = MutableMapping[str, object]


class Secrets:
    """The secret values of this process. Whoever resolves one registers it before using it."""

    def __init__(self) -> None:
        self._values: tuple[bytes, ...] = ()
        self._clean: dict[str, bool] = {}

    def register(self, value: str) -> None:
        """Masks `value` from now on: as it is, as JSON escapes it, and as a URL does."""
        value = value.strip()
        if len(value) < SECRET_MIN:
            return
        raw = value.encode("utf-8", "surrogatepass")
        spellings = {raw, quote(raw, safe="").encode("ascii"), raw}
        spellings.add(msgspec.json.encode(raw.decode("utf-8", "replace"))[1:-1])
        # The longest first: one secret may be the beginning of another.
        self._values = tuple(sorted(spellings.union(self._values), key=lambda v: (-len(v), v)))
        self._clean.clear()

    def clean(self, event: Event) -> bool:
        """True when no field needs `scrub`. Most texts were seen before, so most lines cost lookups."""
        seen = self._clean
        for key, value in event.items():
            if key not in seen and not self._inspect(key, name=True):
                return False
            kind = type(value)
            if kind is str:
                if value not in seen and not self._inspect(cast("str", value)):
                    return False
            elif kind not in _PLAIN:
                return False
        return True

    def _inspect(self, text: str, *, name: bool = False) -> bool:
        if len(text) >= SECRET_MIN:
            raw = text.encode("utf-8", "surrogatepass")
            size = len(raw)
            for value in reversed(self._values):
                if len(value) > size:
                    break
                if value in raw:
                    return False
            low = raw.lower()
            for hint in _HINTS:
                if hint in low:
                    return False
        if name and _SECRET_NAME.search(text):
            return False
        if len(text) <= _CLEAN_TEXT_MAX:
            if len(self._clean) >= _CLEAN_MAX:
                self._clean.clear()
            self._clean[text] = True
        return True

    def scrub(self, line: bytes) -> bytes:
        """`line` without known secrets and without what has the form of one."""
        for value in self._values:
            if value in line:
                line = line.replace(value, MASK)
        low = line.lower()
        for hint, pattern in _PATTERNS:
            if hint in low:
                line = pattern.sub(rb"\g<keep>" + MASK, line)
        return line


# A token may follow an escape such as \n inside a JSON string, whose letter is not part of a word.
_START: Final = rb"(?:(?<![A-Za-z0-9])|(?<=\\[nrtbf]))"


def _token(prefix: bytes, rest: bytes) -> re.Pattern[bytes]:
    return re.compile(_START + rb"(?P<keep>" + prefix + rb")" + rest)


_HEADER: Final = re.compile(
    rb"(?i)(?P<keep>(?:api[-_]?key|authorization)(?:\\*[\"'])?\s*[:=,]\s*(?:b?\\*[\"'])?(?:basic\s+|token\s+)?)"
    rb"(?!bearer\s)[^\s\"'\\,;&})\]]{4,}"
)

# Hints are lower case and looked for in the lower-cased line: most lines have none and cost no regex.
_PATTERNS: Final = (
    (b"sk-", _token(rb"sk-", rb"[A-Za-z0-9_-]{8,}")),
    (b"bw-", _token(rb"bw-", rb"[A-Za-z0-9_-]{16,}")),
    (b"gsk_", _token(rb"gsk_", rb"[A-Za-z0-9]{16,}")),
    (b"aiza", _token(rb"AIza", rb"[A-Za-z0-9_-]{16,}")),
    (b"akia", _token(rb"AKIA", rb"[A-Z0-9]{12,}")),
    (b"bearer", re.compile(rb"(?i)(?P<keep>bearer(?:\s|%20|\+)+)[A-Za-z0-9._~+/=%-]{6,}")),
    (b"key", _HEADER),
    (b"authorization", _HEADER),
    (b"@", re.compile(rb"(?P<keep>://(?:[^\s/:@\"']{0,64}:)?)[^\s/:@\"']+(?=@)")),
)

_HINTS: Final = tuple(hint for hint, _ in _PATTERNS)
_SECRET_NAME: Final = re.compile(r"(?i)key|authorization")

secrets: Final = Secrets()


class Sink:
    """Where lines go. Never waits and never raises.

    A file descriptor is asked whether it takes a write before it gets one: a pipe that says so takes
    `PIPE_BUF` bytes at once. Without that, whoever reads our standard error could stop the event loop.
    """

    def __init__(self, stream: IO[str] | IO[bytes] | None) -> None:
        self.dropped = 0
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._gone = stream is None
        self._stream = stream
        self._fd = -1
        self._asks = False
        if stream is not None:
            try:
                self._fd = stream.fileno()
                # A file always takes a write; poll() would only say so.
                self._asks = not stat.S_ISREG(os.fstat(self._fd).st_mode)
            except (OSError, ValueError, AttributeError):
                self._fd = -1
        self._poll = select.poll()
        if self._asks:
            self._poll.register(self._fd, select.POLLOUT)

    def write(self, line: bytes) -> None:
        with self._lock:
            if self._gone:
                self.dropped += 1
            elif self._fd < 0:
                self._write_stream(line)
            elif self._pending:
                self._keep(line)
                self._write_pending()
            elif (written := self._write_fd(line)) < len(line):
                self._keep(line[written:], part=written > 0)

    def flush(self) -> None:
        """Tries once more to write what could not be written."""
        with self._lock:
            if self._pending and not self._gone:
                self._write_pending()

    def _write_fd(self, data: bytes | memoryview) -> int:
        """Bytes written: all, or as many as the descriptor takes now."""
        size, done = len(data), 0
        try:
            while done < size:
                if self._asks and not self._poll.poll(0):
                    return done
                done += os.write(self._fd, data[done : done + select.PIPE_BUF])
        except (BlockingIOError, InterruptedError):
            return done
        except (OSError, ValueError):
            self._gone = True
            self._pending.clear()
            return size
        return done

    def _write_pending(self) -> None:
        done = self._write_fd(bytes(self._pending))
        del self._pending[:done]

    def _keep(self, data: bytes, *, part: bool = False) -> None:
        # The rest of a line that was begun is kept in any case: half a line would spoil the next.
        if part or len(self._pending) + len(data) <= PENDING_MAX:
            self._pending += data
        else:
            self.dropped += 1

    def _write_stream(self, line: bytes) -> None:
        try:
            if "b" in getattr(self._stream, "mode", "b") and not hasattr(self._stream, "encoding"):
                cast("IO[bytes]", self._stream).write(line)
            else:
                cast("IO[str]", self._stream).write(line.decode("utf-8", "replace"))
        except (OSError, ValueError):
            self._gone = True
            self.dropped += 1


class _Setup:
    """What `get_log` builds loggers from; `configure_logging` replaces it."""

    def __init__(self, fmt: Format, level: Level, stream: IO[str] | IO[bytes] | None) -> None:
        self.level = _LEVELS[level]
        self.sink = Sink(stream)
        colours = fmt == "console" and stream is not None and _is_terminal(stream)
        self.render: Callable[[Event], bytes] = (
            _render_json if fmt == "json" else _Console(colours=colours).render
        )
        self.logger = _logger_class(self.level)

    def write(self, level: str, event: Event) -> None:
        """Time and level, bytes, secrets out, away."""
        if "exc_info" in event:
            _replace_exception(event)
        clean = secrets.clean(event)
        stamped: Event = {"time": time.time(), "level": level, **event}
        line = self.render(stamped)
        if len(line) > LINE_MAX:
            line = self.render(_shorten(stamped))
        self.sink.write(line if clean else secrets.scrub(line))


class _Logger(structlog.BoundLoggerBase):
    """structlog's binding, with the processors' chain as one call: a third of the time."""

    _logger: _Setup

    def debug(self, event: str, **facts: object) -> None:
        self._logger.write("debug", {**self._context, **facts, "event": event})

    def info(self, event: str, **facts: object) -> None:
        self._logger.write("info", {**self._context, **facts, "event": event})

    def warning(self, event: str, **facts: object) -> None:
        self._logger.write("warning", {**self._context, **facts, "event": event})

    def error(self, event: str, **facts: object) -> None:
        self._logger.write("error", {**self._context, **facts, "event": event})

    def exception(self, event: str, **facts: object) -> None:
        facts.setdefault("exc_info", True)
        self.error(event, **facts)


def _quiet(self: _Logger, event: str, **facts: object) -> None:
    """A level below the configured one."""


def _logger_class(level: int) -> type[_Logger]:
    below = {name: _quiet for name, number in _LEVELS.items() if number < level}
    return type("Logger", (_Logger,), below)


_setup: _Setup | None = None


def configure_logging(
    format: Format = "json",  # noqa: A002 - the word in the configuration
    level: Level = "info",
    stream: IO[str] | IO[bytes] | None = None,
) -> Sink:
    """Sends this process's logs, the libraries' included, to `stream` (default: standard error).

    Loggers made before keep their old destination. The sink tells how many lines were dropped.
    """
    global _setup  # noqa: PLW0603 - a process has one standard error, as `logging` has one root
    _setup = _Setup(format, level, sys.stderr if stream is None else stream)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _Bridge):
            root.removeHandler(handler)
    root.addHandler(_Bridge(_setup))
    root.setLevel(logging.DEBUG if _setup.level <= logging.DEBUG else logging.WARNING)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    setup = _setup
    structlog.configure(
        processors=(),
        wrapper_class=setup.logger,
        context_class=dict,
        logger_factory=lambda *_: setup,
        cache_logger_on_first_use=False,
    )
    return setup.sink


def get_log(**bound: object) -> "Log":
    """A logger whose every line carries `bound`."""
    setup = _setup
    if setup is None:
        configure_logging()
        return get_log(**bound)
    logger = setup.logger(setup, processors=(), context=bound)
    return cast("Log", logger)


def flush_logs() -> int:
    """Tries to write what standard error did not take before; returns at once.

    How many lines this process has lost so far.
    """
    if _setup is None:
        return 0
    _setup.sink.flush()
    return _setup.sink.dropped


class _Bridge(logging.Handler):
    """The standard library's records as lines of ours."""

    def __init__(self, setup: _Setup) -> None:
        super().__init__()
        self._setup = setup

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):
            message = f"{record.msg!s} {record.args!r}"
        event: Event = {"event": message[:LINE_MAX], "logger": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        self._setup.write(record.levelname.lower(), event)


def _render_json(event: Event) -> bytes:
    try:
        return _ENCODER.encode(event) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        return _ENCODER.encode(_shorten(event)) + b"\n"


class _Console:
    _COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31"}

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def render(self, event: Event) -> bytes:
        facts = dict(event)
        at = facts.pop("time", 0.0)
        level = str(facts.pop("level", ""))
        name = _printable(str(facts.pop("event", "")))
        trace = facts.pop("exception", None)
        at = at if isinstance(at, float) else 0.0
        clock = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
        if self._colours:
            colour = self._COLOURS.get(level, "0")
            level = f"\x1b[{colour}m{level:<7}\x1b[0m"
            name = f"\x1b[1m{name}\x1b[0m"
        else:
            level = f"{level:<7}"
        parts = [clock, level, name]
        parts += [f"{key}={_value(value)}" for key, value in facts.items()]
        line = " ".join(parts)
        if trace:
            # Line breaks stay, other control characters of hostile texts do not reach a terminal.
            lines = (_printable(part) for part in str(trace).splitlines())
            line += "\n" + "\n".join(lines)
        return line.encode("utf-8", "backslashreplace") + b"\n"


def _value(value: object) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        return f"{value:.6g}"
    else:
        text = _describe(value) if not isinstance(value, int | bool | None) else str(value)
    if text and text.isprintable() and not re.search(r'[\s"=]', text):
        return text
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_printable(quoted)}"'


def _printable(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _is_terminal(stream: IO[str] | IO[bytes]) -> bool:
    try:
        return stream.isatty() and "NO_COLOR" not in os.environ
    except ValueError:
        return False


def _describe(value: object) -> str:
    """`repr`, bounded, for what JSON has no word for."""
    if isinstance(value, BaseException):
        value = f"{type(value).__name__}: {_text(value)}"
        return value[:FIELD_MAX]
    return _text(value, how=repr)[:FIELD_MAX]


def _text(value: object, how: Callable[[object], str] = str) -> str:
    try:
        return how(value)
    except Exception as broken:  # noqa: BLE001 - a broken __repr__ must not fail who logs it
        return f"<{type(value).__name__}: {type(broken).__name__} in its repr>"


_ENCODER: Final = msgspec.json.Encoder(enc_hook=_describe)


def _shorten(event: Event) -> Event:
    """The event with every field cut and made encodable."""
    short: Event = {}
    for key, value in list(event.items())[:64]:
        if key in {"time", "level"} or value is None or isinstance(value, bool | float):
            short[key] = value
            continue
        text = value if isinstance(value, str) else _describe(value)
        limit = TRACEBACK_MAX if key == "exception" else FIELD_MAX
        if len(text) > limit:
            text = f"{text[:limit]}… {len(text) - limit} more"
        short[str(key)[:FIELD_MAX]] = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return short


def _replace_exception(event: Event) -> None:
    """`exc_info` becomes `exception`: the innermost frames, no values of variables, bounded."""
    given = event.pop("exc_info")
    found: BaseException | None
    trace: TracebackType | None
    match given:
        case BaseException():
            found, trace = given, given.__traceback__
        case (_, BaseException() as error, stack):
            found, trace = error, cast("TracebackType | None", stack)
        case None | False | (None, None, None):
            return
        case _:
            found = sys.exc_info()[1]
            trace = found.__traceback__ if found is not None else None
    if found is None:
        return
    whole = traceback.TracebackException(
        type(found), found, trace, limit=-16, max_group_width=5, max_group_depth=5
    )
    parts: list[str] = []
    size = 0
    for part in whole.format():
        parts.append(part)
        size += len(part)
        if size > 4 * TRACEBACK_MAX:
            break
    text = "".join(parts).rstrip()
    if len(text) > TRACEBACK_MAX:
        half = TRACEBACK_MAX // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} more …\n{text[-half:]}"
    event["exception"] = text.encode("utf-8", "backslashreplace").decode("utf-8")
