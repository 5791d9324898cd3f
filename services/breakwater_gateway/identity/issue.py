"""Making, rotating and revoking virtual keys: records in, records out. Chance and time come in."""

import base64
from typing import Final

from msgspec import structs

from breakwater_protocol.keys import KeyRecord, Secret, digest_of

RANDOM_BYTES: Final = 32
ID_BYTES: Final = 6
NAME_MAX: Final = 128
MODELS_MAX: Final = 256
GRACE_MAX_S: Final = 30 * 86_400.0


class BadKey(ValueError):
    """What was asked for cannot be a key: one sentence that names the mend."""


def made(
    *,
    random: bytes,
    id_random: bytes,
    now: float,
    tenant: str,
    name: str = "",
    user: str = "",
    org: str = "",
    team: str = "",
    feature: str = "",
    models: tuple[str, ...] = (),
    expires_in_s: float | None = None,
) -> tuple[KeyRecord, str]:
    """A new record, and the key to show once. `random`: 32 bytes from the system's generator."""
    if len(random) != RANDOM_BYTES or len(id_random) != ID_BYTES:
        raise BadKey(f"a key takes {RANDOM_BYTES} random bytes and its id {ID_BYTES}")
    given = {"tenant": tenant, "name": name, "user": user, "org": org, "team": team}
    for field, value in {**given, "feature": feature}.items():
        if len(value) > NAME_MAX or not value.isprintable():
            raise BadKey(f"the {field} may have {NAME_MAX} printable characters at most")
    if not tenant:
        raise BadKey("a key belongs to a tenant: name one with --tenant")
    if len(models) > MODELS_MAX or any(not model or len(model) > 512 for model in models):
        raise BadKey(f"a key may name {MODELS_MAX} models at most, each of up to 512 characters")
    if expires_in_s is not None and expires_in_s <= 0:
        raise BadKey("a key expires in the future, such as --expires 30d")
    key = "bw-" + base64.urlsafe_b64encode(random).rstrip(b"=").decode("ascii")
    record = KeyRecord(
        id=f"key_{id_random.hex()}",
        tenant=tenant,
        secrets=[Secret(digest_of(key))],
        created_at=now,
        name=name,
        user=user,
        org=org,
        team=team,
        feature=feature,
        models=list(models),
        expires_at=None if expires_in_s is None else now + expires_in_s,
    )
    return record, key


def rotated(
    record: KeyRecord, *, random: bytes, now: float, grace_s: float
) -> tuple[KeyRecord, str]:
    """The same key with a new secret; the present one opens it for `grace_s` longer."""
    if record.revoked_at is not None:
        raise BadKey(f"{record.id} is revoked: make another with `breakwater keys create`")
    if not 0 <= grace_s <= GRACE_MAX_S:
        raise BadKey("the grace is 0 to 30 days, such as --grace 1d")
    fresh, key = made(random=random, id_random=bytes(ID_BYTES), now=now, tenant=record.tenant)
    until = now + grace_s
    kept = [
        structs.replace(secret, until=until if secret.until is None else min(secret.until, until))
        for secret in record.secrets
        if grace_s > 0 and (secret.until is None or secret.until > now)
    ]
    return structs.replace(record, secrets=[*fresh.secrets, *kept[:1]]), key


def revoked(record: KeyRecord, *, now: float) -> KeyRecord:
    """Opens nothing from now on. Twice is once."""
    return record if record.revoked_at is not None else structs.replace(record, revoked_at=now)


def state(record: KeyRecord, now: float) -> str:
    if record.revoked_at is not None:
        return "revoked"
    if record.expires_at is not None and now >= record.expires_at:
        return "expired"
    return "active"
