import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import structlog

from breakwater_gateway.runtime import logs
from breakwater_gateway.runtime.logs import Secrets, Sink
from breakwater_gateway.runtime.telemetry import Log, configure_logging, get_log, secrets

Lines = Callable[[], list[dict[str, object]]]


@pytest.fixture
def stream() -> io.BytesIO:
    return io.BytesIO()


@pytest.fixture
def lines(stream: io.BytesIO) -> Lines:
    configure_logging("json", "info", stream)
    return lambda: [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_time_level_and_facts(lines: Lines) -> None:
    log: Log = get_log(actor="router", id="router-1")
    log.info("request_finished", tenant="acme", attempts=2, cost=None, ok=True, ms=1.5)
    (line,) = lines()
    assert isinstance(line.pop("time"), float)
    assert line == {
        "level": "info",
        "actor": "router",
        "id": "router-1",
        "event": "request_finished",
        "tenant": "acme",
        "attempts": 2,
        "cost": None,
        "ok": True,
        "ms": 1.5,
    }


def test_a_level_below_the_configured_one_writes_nothing(stream: io.BytesIO) -> None:
    configure_logging("json", "warning", stream)
    log = get_log()
    log.debug("a")
    log.info("b")
    assert stream.getvalue() == b""
    log.warning("c")
    log.error("d")
    assert stream.getvalue().count(b"\n") == 2


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("key sk-proj-abcdefgh12345678 refused", "abcdefgh12345678"),
        ("sk-ant-api03-abcdefgh12345678", "abcdefgh12345678"),
        ("line\nsk-abcdefgh12345678", "abcdefgh12345678"),
        ("virtual bw-0123456789abcdef0123", "0123456789abcdef0123"),
        ("Authorization: Bearer eyJhbGciOi.J9.abc-_", "eyJhbGciOi"),
        ("bearer   abcdef123456", "abcdef123456"),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ('{"authorization": "abcdef123456"}', "abcdef123456"),
        ("https://x/v1?key=AIzaSyA1234567890abcdefghijk", "SyA1234567890abcdefghijk"),
        ("AKIAIOSFODNN7EXAMPLE", "IOSFODNN7EXAMPLE"),
        ("X-Api-Key: abcdef123456", "abcdef123456"),
        ("{'x-goog-api-key': 'abcdef123456'}", "abcdef123456"),
        ("[(b'x-api-key', b'abcdef123456')]", "abcdef123456"),
        ("https://x/?api_key=abcdef123456&b=1", "abcdef123456"),
        ("nats://user:hunter22@host:4222", "hunter22"),
        ("nats://s3cr3t-token@host:4222", "s3cr3t-token"),
        ("gsk_abcdefghij0123456789", "abcdefghij0123456789"),
    ],
)
def test_what_looks_like_a_secret_is_masked_wherever_it_is(
    stream: io.BytesIO, text: str, secret: str
) -> None:
    for fmt in ("json", "console"):
        stream.seek(0)
        stream.truncate()
        configure_logging("json" if fmt == "json" else "console", "info", stream)
        log = get_log(bound=text)
        log.info("happened", text=text)
        log.info(text)
        log.info("nested", value={"inner": [text]}, error=ValueError(text))
        log.error("failed", exc_info=ValueError(text))
        written = stream.getvalue().decode()
        assert secret not in written
        assert "***" in written
        if fmt == "json":
            for line in stream.getvalue().splitlines():
                msgspec.json.decode(line)


@pytest.mark.parametrize(
    "text",
    [
        "task-management-service",
        "risk-assessment",
        "gpt-4.1",
        "the bearer of news",
        "tokens=12 key=3",
        "someone@example.org",
        "nats://127.0.0.1:4222",
        "bw-worker",
        "skill-1",
    ],
)
def test_ordinary_words_are_left_as_they_are(lines: Lines, text: str) -> None:
    get_log().info("happened", text=text)
    assert lines()[0]["text"] == text


def test_a_registered_value_is_masked_in_each_of_its_spellings() -> None:
    book = Secrets()
    book.register(' pä"ss/word+1 ')
    line = msgspec.json.encode({"a": 'pä"ss/word+1', "b": "x%C3%A4 p%C3%A4%22ss%2Fword%2B1"})
    scrubbed = book.scrub(line).decode()
    assert "ss" not in scrubbed
    assert scrubbed.count("***") == 2


def test_a_value_is_masked_from_its_registration_on_even_if_it_was_logged_before(
    lines: Lines,
) -> None:
    log = get_log()
    log.info("a", value="plain-looking-77")
    secrets.register("plain-looking-77")
    log.info("b", value="plain-looking-77")
    log.info("c", value="before plain-looking-77 after")
    assert [line["value"] for line in lines()] == ["plain-looking-77", "***", "before *** after"]


def test_short_values_are_not_secrets() -> None:
    book = Secrets()
    book.register("model")
    assert book.scrub(b"the model") == b"the model"


def test_a_longer_secret_is_masked_whole_although_it_begins_like_another() -> None:
    book = Secrets()
    book.register("abcdefgh")
    book.register("abcdefgh-and-more")
    assert book.scrub(b"x abcdefgh-and-more y") == b"x *** y"


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_values_that_json_cannot_hold_do_not_fail_the_caller(lines: Lines) -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    log = get_log()
    log.info("a", value=Broken())
    log.info("b", value={1, 2, object})
    log.info("c", value="\ud800 lone")
    log.info("d", value=2**80)
    log.info("e", value=deep)
    log.info("f", value={("a", "tuple"): 1})
    log.info("g", **{"k" * 5000: "v"})
    assert [line["event"] for line in lines()] == list("abcdefg")
    assert "no repr" not in str(lines()[0])


def test_a_long_line_is_cut_field_by_field(lines: Lines, stream: io.BytesIO) -> None:
    get_log().info("big", text="x" * 1_000_000, small="kept", number=5)
    assert len(stream.getvalue()) < logs.LINE_MAX
    (line,) = lines()
    assert line["small"] == "kept"
    assert str(line["text"]).endswith("999488 more")


def test_an_exception_is_rendered_within_bounds(lines: Lines) -> None:
    def fall(depth: int) -> None:
        if depth:
            fall(depth - 1)
        raise ValueError("m" * 100_000)

    try:
        fall(200)
    except ValueError:
        get_log().exception("failed")
    group = ExceptionGroup("many", [ValueError(str(number)) for number in range(1000)])
    get_log().error("grouped", exc_info=group)
    failed, grouped = lines()
    assert len(str(failed["exception"])) <= logs.TRACEBACK_MAX + 64
    assert "ValueError" in str(failed["exception"])
    assert "and 995 more exceptions" in str(grouped["exception"])
    assert "exc_info" not in failed


def test_without_an_exception_nothing_is_rendered(lines: Lines) -> None:
    get_log().exception("failed")
    get_log().info("fine", exc_info=None)
    assert all("exception" not in line and "exc_info" not in line for line in lines())


def test_libraries_end_up_in_the_same_place(lines: Lines) -> None:
    library = logging.getLogger("nats.aio.client")
    library.error("lost %s with %s", "host", "sk-abcdefgh12345678")
    library.error("failed", exc_info=OSError("gone"))
    library.info("below the level of libraries")
    first, second = lines()
    assert first["event"] == "lost host with sk-***"
    assert (first["level"], first["logger"]) == ("error", "nats.aio.client")
    assert "OSError: gone" in str(second["exception"])


def test_a_librarys_broken_format_is_logged_as_it_stands(lines: Lines) -> None:
    (bridge,) = (h for h in logging.getLogger().handlers if isinstance(h, logs._Bridge))
    bridge.handle(
        logging.makeLogRecord(
            {"name": "x", "msg": "bad %d", "args": ("text",), "levelname": "ERROR"}
        )
    )
    assert lines()[0]["event"] == "bad %d ('text',)"


def test_structlogs_own_loggers_end_up_there_too(lines: Lines) -> None:
    structlog.get_logger("somebody").warning("heard", key="sk-abcdefgh12345678")
    assert lines()[0]["event"] == "heard"
    assert "abcdefgh" not in str(lines())


def test_configuring_again_does_not_double_the_lines(lines: Lines, stream: io.BytesIO) -> None:
    configure_logging("json", "info", stream)
    logging.getLogger("nats").error("once")
    assert len(lines()) == 1


def test_a_console_line_is_for_people_and_keeps_the_terminal_safe(stream: io.BytesIO) -> None:
    configure_logging("console", "info", stream)
    get_log(actor="edge").warning(
        "hap\x1b[2Jpened", text='a "b" c', n=1.23456789, evil="x\x1b]0;y\x07\nz"
    )
    (line,) = stream.getvalue().decode().splitlines()
    assert "warning" in line
    assert 'actor=edge text="a \\"b\\" c" n=1.23457' in line
    assert "\x1b" not in line
    assert "\x07" not in line


def test_a_reader_that_is_gone_costs_lines_and_nothing_else() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as stream:
        sink = Sink(stream)
        os.close(read)
        sink.write(b"a\n")
        sink.write(b"b\n")
        sink.flush()
    assert sink.dropped >= 1


def test_a_reader_that_stands_still_never_blocks_the_writer() -> None:
    read, write = os.pipe()
    line = b"x" * 999 + b"\n"
    with (
        os.fdopen(read, "rb", buffering=0) as reader,
        os.fdopen(write, "wb", buffering=0) as stream,
    ):
        sink = Sink(stream)
        for _ in range(2_000):
            sink.write(line)
        assert sink.dropped > 0
        kept = 2_000 - sink.dropped
        received = b""
        while len(received) < kept * len(line):
            received += reader.read(1 << 20)
            sink.flush()
        assert received == line * kept


def test_a_closed_stream_is_survived() -> None:
    stream = io.BytesIO()
    sink = Sink(stream)
    stream.close()
    sink.write(b"a\n")
    assert sink.dropped == 1


def test_text_streams_without_a_descriptor_are_served_too() -> None:
    stream = io.StringIO()
    Sink(stream).write("ä\n".encode())
    assert stream.getvalue() == "ä\n"


def test_a_process_without_standard_error_still_runs(tmp_path: Path) -> None:
    code = (
        "import os; os.close(2)\n"
        "from breakwater_gateway.runtime.telemetry import configure_logging, get_log\n"
        "configure_logging(); get_log().info('unheard'); print('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd=tmp_path, timeout=30
    )
    assert done.stdout == b"alive\n"
