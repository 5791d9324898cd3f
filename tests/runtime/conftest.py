"""Logging is a process's, so each test here leaves it as it found it."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from breakwater_gateway.runtime import logs


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in root.handlers[:]:
        if isinstance(handler, logs._Bridge):
            root.removeHandler(handler)
    root.setLevel(level)
    structlog.reset_defaults()
    logs._setup = None
