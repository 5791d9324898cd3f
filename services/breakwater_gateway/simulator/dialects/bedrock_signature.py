"""The shape of an `authorization` header of AWS Signature Version 4, and of Bedrock's bearer keys.

The signature itself is not recomputed: a simulator has no secrets. Source: AWS General Reference, "Elements
of an AWS API request signature"; Amazon Bedrock user guide, "Use an Amazon Bedrock API key".
"""

import re
from collections.abc import Mapping
from typing import Final

from breakwater_gateway.simulator.dialects.bedrock_errors import BedrockError
from breakwater_gateway.simulator.dialects.dialect import bearer

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "bedrock"

_PARTS: Final = ("Credential", "SignedHeaders", "Signature")
_STAMP: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_SIGNATURE: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def caller(headers: Mapping[str, str]) -> str:
    """The access key's id, or the bearer key; empty where there is neither."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme != ALGORITHM:
        return bearer(headers)
    return _parts(rest).get("Credential", "").partition("/")[0]


def check(headers: Mapping[str, str]) -> None:
    """Raises `BedrockError` for a signature that cannot be one. No header at all is let through."""
    given = headers.get("authorization")
    if given is None:
        return
    scheme, _, rest = given.partition(" ")
    if scheme.lower() == "bearer":
        return
    if scheme != ALGORITHM:
        raise BedrockError("IncompleteSignatureException", f"The algorithm is not '{ALGORITHM}'.")
    parts = _parts(rest)
    missing = [name for name in _PARTS if not parts.get(name)]
    if missing:
        raise BedrockError(
            "IncompleteSignatureException",
            " ".join(f"Authorization header requires '{name}' parameter." for name in missing),
        )
    stamp = headers.get("x-amz-date", "")
    if not _STAMP.fullmatch(stamp):
        raise BedrockError(
            "IncompleteSignatureException",
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.",
        )
    _check_scope(parts["Credential"], stamp)
    _check_signed(parts["SignedHeaders"], headers)
    if not _SIGNATURE.fullmatch(parts["Signature"]):
        raise BedrockError(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your"
            " AWS Secret Access Key and signing method. Consult the service documentation for details.",
        )


def _check_scope(credential: str, stamp: str) -> None:
    scope = credential.split("/")
    if len(scope) != 5 or not all(scope):
        raise BedrockError(
            "IncompleteSignatureException",
            "Credential must have exactly 5 slash-delimited elements, e.g."
            " keyid/date/region/service/term",
        )
    _, date, _, service, term = scope
    if date != stamp[:8]:
        raise BedrockError(
            "InvalidSignatureException",
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP",
        )
    if service != SERVICE:
        raise BedrockError(
            "InvalidSignatureException",
            f"Credential should be scoped to correct service: '{SERVICE}'.",
        )
    if term != "aws4_request":
        raise BedrockError(
            "InvalidSignatureException",
            "Credential should be scoped with a valid terminator: 'aws4_request'.",
        )


def _check_signed(given: str, headers: Mapping[str, str]) -> None:
    names = given.split(";")
    wanted = {"host", *(name for name in headers if name.startswith("x-amz-"))}
    if names != sorted(set(names)) or not wanted <= set(names) or not set(names) <= headers.keys():
        raise BedrockError(
            "InvalidSignatureException",
            "'Host' or some 'X-Amz-' header is not a 'SignedHeader' in the AWS 'Authorization' parameter.",
        )


def _parts(text: str) -> dict[str, str]:
    """`Name=value` pairs; a name that comes twice counts once."""
    pairs = (part.strip().partition("=") for part in text[:8192].split(","))
    return {name: value for name, _, value in pairs}
