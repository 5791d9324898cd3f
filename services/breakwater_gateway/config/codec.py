"""What the KV bucket holds, and the resolved configuration as bytes.

Stored is the YAML text with its origin (`Stored`), not the resolved `Config`: an operator sees what was
written, and a process of another version reads the text by its own table, so that a rolling upgrade
neither loses a key that only the newer one knows nor misses a default that changed. The text holds no
secret, since the loader refuses them, except what someone wrote into a comment.

`encode` and `decode` carry a resolved `Config` between processes of one version; `digest` names a
revision by its content.
"""

import hashlib
from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from breakwater_gateway.config.load import load_text
from breakwater_gateway.config.model import Config
from breakwater_gateway.config.show import to_yaml

T = TypeVar("T")

_STORED_MAX: Final = 8 * 1024 * 1024


class BadStored(ValueError):
    """Bytes that no version of this codec wrote."""


class Stored(Struct, frozen=True):
    """A revision in the bucket."""

    source: str
    """Where the text came from, for messages: a file's name, or `defaults`."""
    text: str
    """The YAML, byte for byte."""
    simulator: bool = False
    """Made by `default_config` for the built-in simulator."""
    files: dict[str, str] = {}
    """Contents of the files that the text names: other machines need not have them."""


_stored = msgspec.json.Decoder(Stored)
_config = msgspec.json.Decoder(Config)


def encode_stored(stored: Stored) -> bytes:
    return msgspec.json.encode(stored)


def decode_stored(data: bytes) -> Stored:
    """Raises `BadStored`."""
    return _decode(_stored, data)


def load_stored(stored: Stored, environment: Mapping[str, str]) -> Config:
    """The configuration that a stored revision describes here. Raises `ConfigError`."""

    def read_file(name: str) -> bytes:
        if name not in stored.files:
            raise ValueError("the revision does not hold it")
        return stored.files[name].encode()

    config = load_text(
        stored.text, source=stored.source, environment=environment, read_file=read_file
    )
    return msgspec.structs.replace(config, simulator=stored.simulator)


def stored_defaults(config: Config) -> Stored:
    """A configuration that came from no file, as text that loads again."""
    return Stored("defaults", to_yaml(config), simulator=config.simulator)


def encode(config: Config) -> bytes:
    return msgspec.json.encode(config)


def decode(data: bytes) -> Config:
    """What `encode` of this version wrote. Raises `BadStored`."""
    return _decode(_config, data)


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal: equal bytes, equal revision."""
    return hashlib.sha256(data).hexdigest()


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    if len(data) > _STORED_MAX:
        raise BadStored(f"a stored configuration of {len(data)} bytes; {_STORED_MAX} are allowed")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadStored(f"not a stored configuration: {error}") from None
