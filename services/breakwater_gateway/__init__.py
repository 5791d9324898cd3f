"""Breakwater: an LLM gateway whose parts are actors on a NATS bus."""

from typing import Final

__version__: Final = "0.1.0"
