"""Virtual keys: what a caller shows instead of a provider's key, and what is kept of it.

A key is `bw-` and 43 characters of base64url: 256 random bits. It is shown once; the bucket `bw_keys` keeps a
`KeyRecord` with its SHA-256, under the key's id. The digest needs no salt: nobody guesses 256 random bits.
"""

import hashlib
import hmac
import re
from typing import Final

import msgspec
from msgspec import Struct

KEY_PATTERN: Final = re.compile(r"bw-[A-Za-z0-9_-]{43}")
ID_PATTERN: Final = re.compile(r"key_[0-9a-f]{12}")
BUCKET: Final = "bw_keys"
KEYS_MAX: Final = 100_000
"""Keys that a board holds; further ones are refused and counted."""


class Secret(Struct, frozen=True, omit_defaults=True):
    """One secret that opens a key; two while a rotation's grace lasts."""

    digest: str
    """SHA-256 of the whole key, in hex."""
    until: float | None = None
    """Unix time after which it opens nothing; None: as long as the key."""


class KeyRecord(Struct, frozen=True, omit_defaults=True):
    """What a virtual key may do. Times are Unix seconds."""

    id: str
    """`key_` and 12 hex digits: what logs, events and budgets call it."""
    tenant: str
    secrets: list[Secret]
    created_at: float
    name: str = ""
    """What people call it."""
    user: str = ""
    """Whoever shows the key is this user, and may claim to be no other; empty: any."""
    org: str = ""
    team: str = ""
    feature: str = ""
    models: list[str] = []
    """Logical models that may be asked, `*` at the end of a name for every one that begins so; empty: all."""
    expires_at: float | None = None
    revoked_at: float | None = None


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class KeyBoard:
    """The keys as last published: folds the entries of the bucket in any order, by revision."""

    __slots__ = ("_by_digest", "_by_id", "_revisions", "refused")

    def __init__(self) -> None:
        self._by_digest: dict[str, tuple[KeyRecord, Secret]] = {}
        self._by_id: dict[str, KeyRecord] = {}
        self._revisions: dict[str, int] = {}
        self.refused = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def fold(self, id_: str, value: bytes | None, revision: int) -> None:
        """An entry of the bucket; None: the key was deleted. Raises `msgspec.MsgspecError` on one that is no
        record of this id, which changes nothing."""
        if revision <= self._revisions.get(id_, 0):
            return
        record = None if value is None else msgspec.json.decode(value, type=KeyRecord)
        if record is not None and record.id != id_:
            raise msgspec.ValidationError(f"the entry {id_} holds the key {record.id[:40]}")
        if record is not None and id_ not in self._by_id and len(self._by_id) >= KEYS_MAX:
            self.refused += 1
            return
        self._revisions[id_] = revision
        before = self._by_id.pop(id_, None)
        if before is not None:
            for secret in before.secrets:
                self._by_digest.pop(secret.digest, None)
        if record is not None:
            self._by_id[id_] = record
            for secret in record.secrets:
                self._by_digest[secret.digest] = (record, secret)

    def named(self, id_: str) -> KeyRecord | None:
        """Whatever has become of it."""
        return self._by_id.get(id_)

    def find(self, key: str, now_wall: float) -> KeyRecord | None:
        """The record that the key opens now; None for one that is unknown, revoked or over.

        Looked up by its digest, so that how long it takes says nothing about how near a guess was, and
        compared in constant time once more.
        """
        if not KEY_PATTERN.fullmatch(key):
            return None
        digest = digest_of(key)
        found = self._by_digest.get(digest)
        if found is None:
            return None
        record, secret = found
        if not hmac.compare_digest(secret.digest, digest):
            return None
        ends = (record.revoked_at, record.expires_at, secret.until)
        if any(end is not None and now_wall >= end for end in ends):
            return None
        return record


def may_ask(record: KeyRecord, model: str) -> bool:
    if not record.models:
        return True
    return any(
        model == allowed or (allowed.endswith("*") and model.startswith(allowed[:-1]))
        for allowed in record.models
    )
