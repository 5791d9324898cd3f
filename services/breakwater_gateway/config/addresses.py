"""What in the configuration points elsewhere: keys of providers, URLs, the header fields of calls."""

import re
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from breakwater_gateway.config.kinds import (
    AS_TEXT,
    JsonSchema,
    read_text,
    unexpected,
    what,
)
from breakwater_gateway.config.model import KeyRef
from breakwater_gateway.config.problems import Path, Report, looks_secret, shown
from breakwater_gateway.config.provider import Param, places_fault
from breakwater_gateway.config.yaml_tree import Mapping, Node, Scalar

KEY_REF_PATTERN: Final = r"(?:env:[A-Za-z_][A-Za-z0-9_]{0,255}|file:[^\x00-\x1f\x7f]{1,4096})"

_KEY_REF: Final = re.compile(KEY_REF_PATTERN)

_URL_MAX: Final = 2048

_URL_PATTERN: Final = r"https?://[!-\"$->@-~]+"  # printable ASCII but ? and #

_HEADER_NAME_PATTERN: Final = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}"  # RFC 9110, section 5.1

_HEADER_VALUE_PATTERN: Final = r"[!-~](?:[\t -~]*[!-~])?"  # RFC 9110, section 5.5, without obs-text

_HEADER_SECRET: Final = re.compile(
    r"(?i)auth|api-?key|token|secret|password|cookie|credential|signature"
)

_HEADER_OURS: Final = frozenset(
    [
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ]
)


class KeyRefs(Struct, frozen=True):
    """One reference to a secret, or a list of them. What stands there is never repeated."""

    maximum: int = 100

    def read(self, node: Node, path: Path, report: Report) -> tuple[KeyRef, ...] | None:
        if isinstance(node, Mapping):
            unexpected(node, "env:NAME, file:PATH or a list of them", "a mapping", path, report)
            return None
        if isinstance(node, Scalar):
            ref = _key_ref(node, path, report)
            return None if ref is None else (ref,)
        if len(node.items) > self.maximum:
            message = f"at most {self.maximum} keys in a pool; these are {len(node.items)}"
            report.add(path, node.line, node.column, message)
            return None
        found: list[KeyRef] = []
        good = True
        for index, item in enumerate(node.items):
            ref = _key_ref(item, (*path, index), report)
            if ref is None:
                good = False
            elif ref in found:
                report.add((*path, index), item.line, item.column, "the same key twice in the pool")
                good = False
            else:
                found.append(ref)
        return tuple(found) if good else None

    def schema(self) -> JsonSchema:
        one = {"type": "string", "pattern": f"^{KEY_REF_PATTERN}$"}
        several = {"type": "array", "items": one, "maxItems": self.maximum, "uniqueItems": True}
        return {"anyOf": [one, several]}


class Setting(Struct, frozen=True):
    """A provider's setting: its text, or where it is; a secret only ever the latter."""

    param: Param

    def read(self, node: Node, path: Path, report: Report) -> str | KeyRef | None:
        reference = "env:NAME or file:PATH"
        wanted = self.param.expected
        expected = f"{wanted}, or {reference}" if self.param.pattern else f"{reference} of {wanted}"
        if not isinstance(node, Scalar) or node.is_null:
            unexpected(node, expected, what(node), path, report)
            return None
        if not self.param.pattern or node.text.startswith(("env:", "file:")):
            return _key_ref(node, path, report)
        if not re.fullmatch(self.param.pattern, node.text):
            unexpected(node, expected, shown(node.text), path, report)
            return None
        return node.text

    def schema(self) -> JsonSchema:
        reference = {"type": "string", "pattern": f"^{KEY_REF_PATTERN}$"}
        pattern = self.param.pattern
        if not pattern:
            return reference
        forms: list[JsonSchema] = [reference, {"type": "string", "pattern": f"^{pattern}$"}]
        # What JSON sees of an unquoted `123`, `1.5` or `true`.
        if re.fullmatch(pattern, "1"):
            forms.append(
                {"type": "number" if re.fullmatch(pattern, "1.5") else "integer", "minimum": 0}
            )
        if re.fullmatch(pattern, "true"):
            forms.append({"type": "boolean"})
        return {"anyOf": forms}


class Url(Struct, frozen=True):
    """An http(s) base URL, read without its trailing slashes; settings may stand in braces."""

    def read(self, node: Node, path: Path, report: Report) -> str | None:
        expected = "a base URL such as https://host/v1"
        text = read_text(node, expected, path, report)
        if text is None:
            return None
        reason = _url_fault(text)
        if reason:
            report.add(path, node.line, node.column, f"expected {expected}; {reason}")
            return None
        return text.rstrip("/")

    def schema(self) -> JsonSchema:
        return {"type": "string", "pattern": f"^{_URL_PATTERN}$", "maxLength": _URL_MAX}


class Hook(Struct, frozen=True):
    """An http(s) address that is called, or where it is: env:NAME or file:PATH."""

    def read(self, node: Node, path: Path, report: Report) -> str | KeyRef | None:
        expected = "an address such as https://host/path, or env:NAME or file:PATH of one"
        text = read_text(node, expected, path, report)
        if text is None:
            return None
        if text.startswith(("env:", "file:")):
            return _key_ref(node, path, report)
        if looks_secret(text) or "?" in text or "@" in text:
            message = "an address that holds a secret does not stand in the configuration;"
            report.add(path, node.line, node.column, f"{message} write env:NAME or file:PATH")
            return None
        if len(text) > _URL_MAX or not re.fullmatch(_URL_PATTERN, text):
            unexpected(node, expected, shown(text), path, report)
            return None
        return text

    def schema(self) -> JsonSchema:
        pattern = f"^(?:{_URL_PATTERN}|{KEY_REF_PATTERN})$"
        return {"type": "string", "pattern": pattern, "maxLength": 4096 + 5}


class Headers(Struct, frozen=True):
    """Header fields sent with every call; secrets and what the HTTP client sets itself are refused."""

    maximum: int = 32
    value_max: int = 1024

    def read(self, node: Node, path: Path, report: Report) -> tuple[tuple[str, str], ...] | None:
        if not isinstance(node, Mapping):
            unexpected(node, "header names and values", what(node), path, report)
            return None
        if len(node.entries) > self.maximum:
            message = f"at most {self.maximum} headers; these are {len(node.entries)}"
            report.add(path, node.line, node.column, message)
            return None
        found: dict[str, str] = {}
        good = True
        for key, value in node.entries:
            fault = self._fault(key.text, value)
            if not fault and key.text.lower() in found:
                fault = "the same header twice"
            if fault:
                report.add((*path, key.text), key.line, key.column, fault)
                good = False
            elif isinstance(value, Scalar):
                found[key.text.lower()] = value.text
        return tuple(found.items()) if good else None

    def _fault(self, name: str, value: Node) -> str:
        if not re.fullmatch(_HEADER_NAME_PATTERN, name):
            return "not a header name (RFC 9110: letters, digits and hyphens)"
        if name.lower() in _HEADER_OURS:
            return "this header is set for each call; it cannot be configured"
        if _HEADER_SECRET.search(name):
            return "a header that carries a secret is not configured here; use api_key"
        if not isinstance(value, Scalar) or value.is_null:
            return f"expected the header's value, not {what(value)}"
        if len(value.text) > self.value_max:
            return f"at most {self.value_max} characters; this has {len(value.text)}"
        if not re.fullmatch(_HEADER_VALUE_PATTERN, value.text):
            return "expected printable ASCII on one line"
        if looks_secret(value.text):
            return "this looks like a secret; put it in the environment and use api_key: env:NAME"
        return ""

    def schema(self) -> JsonSchema:
        value = {
            "type": AS_TEXT,
            "pattern": f"^{_HEADER_VALUE_PATTERN}$",
            "maxLength": self.value_max,
        }
        return {
            "type": "object",
            "maxProperties": self.maximum,
            "propertyNames": {"pattern": f"^{_HEADER_NAME_PATTERN}$"},
            "additionalProperties": value,
        }


def _key_ref(node: Node, path: Path, report: Report) -> KeyRef | None:
    if not isinstance(node, Scalar) or node.is_null:
        unexpected(node, "env:NAME or file:PATH", what(node), path, report)
        return None
    source, _, name = node.text.partition(":")
    if source not in {"env", "file"}:
        report.add(
            path,
            node.line,
            node.column,
            "a secret may not stand in the configuration;"
            " put it in the environment and write env:NAME (or in a file and write file:PATH)",
        )
        return None
    if not _KEY_REF.fullmatch(node.text) or (source == "env" and looks_secret(name)):
        after = (
            "the name of an environment variable after env:"
            if source == "env"
            else "the path of a file after file:"
        )
        report.add(path, node.line, node.column, f"expected {after}, not the secret itself")
        return None
    return KeyRef("env" if source == "env" else "file", name)


def _url_fault(text: str) -> str:
    """What is wrong with a base URL, without repeating it: it may hold a password."""
    if len(text) > _URL_MAX:
        return f"this has {len(text)} characters, {_URL_MAX} are allowed"
    if not text.startswith(("http://", "https://")):
        return "it must start with http:// or https://"
    if "?" in text or "#" in text:
        return "a query or a fragment has no place in it"
    if not re.fullmatch(_URL_PATTERN, text):
        return "it holds characters that a URL must escape"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return "its host or port is malformed"
    if "@" in parts.netloc:
        return "a user or password has no place in it; use api_key"
    if not host or port == 0:
        return "its host or port is missing"
    if fault := places_fault(text):
        return fault
    for tail in ("/chat/completions", "/embeddings", "/responses", "/messages"):
        if parts.path.rstrip("/").endswith(tail):
            return f"leave out {tail}, which is added"
    return ""
