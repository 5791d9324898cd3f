"""Provider keys: resolved from references, only here, and never shown."""

from collections.abc import Callable, Mapping
from typing import Final

from breakwater_gateway.config.model import KeyRef
from breakwater_protocol import failures as f

KEY_BYTES_MAX: Final = 16_384
_START: Final = 8
"""Characters of a key that tell no more than whose it is: `sk-proj-`."""

ReadFile = Callable[[str], str]


def resolve(
    reference: KeyRef, *, environment: Mapping[str, str], read_file: ReadFile
) -> str | f.KeyRejected:
    """The secret, or why there is none, naming the reference and never a value."""
    if reference.source == "env":
        value = environment.get(reference.name, "").strip()
        if not value:
            return f.KeyRejected(
                f"the provider's key is missing: set the environment variable {reference.name} "
                "where the worker runs"
            )
    else:
        try:
            value = read_file(reference.name).strip()
        except (OSError, UnicodeDecodeError):
            value = ""
        if not value:
            return f.KeyRejected(
                f"the provider's key is missing: the worker cannot read it from {reference.name}"
            )
    if len(value) > KEY_BYTES_MAX or not value.isascii() or not value.isprintable():
        return f.KeyRejected(f"the provider's key at {reference} is not one line of plain ASCII")
    return value


def scrub(text: str, secret: str) -> str:
    """A provider's message without our key, should it quote it, and without the part of it at the end of a
    message that was cut there."""
    if not secret:
        return text
    text = text.replace(secret, "[key]")
    start = secret[:_START]
    at = text.find(start, max(0, len(text) - len(secret) + 1))
    while at >= 0:
        if secret.startswith(text[at:]):
            return text[:at] + "[key]"
        at = text.find(start, at + 1)
    return text
