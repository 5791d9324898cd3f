"""`breakwater keys create | list | revoke | rotate`: virtual keys, kept in the bucket `bw_keys`.

The key itself is printed once and kept nowhere; every actor knows of a change within a second.
"""

import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click
import msgspec

from breakwater_gateway.cli import output, reach
from breakwater_gateway.cli.talk import as_json_option
from breakwater_gateway.identity import issue
from breakwater_protocol.keys import BUCKET, ID_PATTERN, KeyRecord

if TYPE_CHECKING:
    from breakwater_gateway.runtime.bus import Store


@click.group(help="Virtual keys: make, list, revoke and rotate them.")
def keys() -> None:
    """The group itself does nothing."""


@keys.command(help="Make a key. It is shown once.")
@click.option("--tenant", default="default", show_default=True, help="Whose requests it makes.")
@click.option("--name", default="", help="What people call it.")
@click.option("--user", default="", help="Whoever shows the key is this user.")
@click.option("--org", default="", help="… of this organisation.")
@click.option("--team", default="", help="… and this team.")
@click.option("--feature", default="", help="What it is used for.")
@click.option(
    "--model", "models", multiple=True, help="A model it may ask, gpt-* for many; default all."
)
@click.option("--expires", metavar="DURATION", help="Such as 30d; default never.")
@as_json_option
@reach.nats
@reach.creds
def create(
    tenant: str,
    name: str,
    user: str,
    org: str,
    team: str,
    feature: str,
    models: tuple[str, ...],
    expires: str | None,
    as_json: bool,
    nats_url: str,
    creds: str | None,
) -> None:
    record, key = _made(
        lambda: issue.made(
            random=secrets.token_bytes(issue.RANDOM_BYTES),
            id_random=secrets.token_bytes(issue.ID_BYTES),
            now=time.time(),
            tenant=tenant,
            name=name,
            user=user,
            org=org,
            team=team,
            feature=feature,
            models=models,
            expires_in_s=_seconds(expires, "--expires", as_json=as_json),
        ),
        as_json=as_json,
    )

    async def work(store: "Store") -> int:
        await store.create(record.id, msgspec.json.encode(record))
        _show_once(record, key, as_json=as_json)
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@keys.command("list", help="Every key: what it may do, and whether it does.")
@click.option("--tenant", default="", help="Only this tenant's.")
@as_json_option
@reach.nats
@reach.creds
def list_(tenant: str, as_json: bool, nats_url: str, creds: str | None) -> None:
    async def work(store: "Store") -> int:
        found = [r for r in await _all(store) if not tenant or r.tenant == tenant]
        found.sort(key=lambda record: record.created_at)
        now = time.time()
        if as_json:
            for record in found:
                output.say_json(_facts(record, now))
        else:
            output.table(
                ("id", "name", "tenant", "user", "org", "team", "models", "state"),
                [
                    (
                        *(r.id, r.name, r.tenant, r.user, r.org, r.team),
                        *(", ".join(r.models) or "all", issue.state(r, now)),
                    )
                    for r in found
                ],
            )
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@keys.command(help="End a key: no actor serves it a second later.")
@click.argument("key_id")
@as_json_option
@reach.nats
@reach.creds
def revoke(key_id: str, as_json: bool, nats_url: str, creds: str | None) -> None:
    async def work(store: "Store") -> int:
        record, revision = await _one(store, key_id, as_json=as_json)
        record = issue.revoked(record, now=time.time())
        await store.update(record.id, msgspec.json.encode(record), revision=revision)
        _say(record, f"{record.id} is revoked", as_json=as_json)
        return 0

    _run(work, nats_url, creds, as_json=as_json)


@keys.command(help="Give a key another secret, shown once; the present one holds for the grace.")
@click.argument("key_id")
@click.option("--grace", default="0s", show_default=True, metavar="DURATION")
@as_json_option
@reach.nats
@reach.creds
def rotate(key_id: str, grace: str, as_json: bool, nats_url: str, creds: str | None) -> None:
    async def work(store: "Store") -> int:
        record, revision = await _one(store, key_id, as_json=as_json)
        record, key = _made(
            lambda: issue.rotated(
                record,
                random=secrets.token_bytes(issue.RANDOM_BYTES),
                now=time.time(),
                grace_s=_seconds(grace, "--grace", as_json=as_json) or 0.0,
            ),
            as_json=as_json,
        )
        await store.update(record.id, msgspec.json.encode(record), revision=revision)
        _show_once(record, key, as_json=as_json)
        return 0

    _run(work, nats_url, creds, as_json=as_json)


def _made(make: Callable[[], tuple[KeyRecord, str]], *, as_json: bool) -> tuple[KeyRecord, str]:
    try:
        return make()
    except issue.BadKey as error:
        output.fail(str(error), code=output.USAGE, as_json=as_json)


def _seconds(text: str | None, option: str, *, as_json: bool) -> float | None:
    from breakwater_gateway.config.amounts import parse_duration_ms

    if text is None:
        return None
    ms = parse_duration_ms(text)
    if ms is None:
        output.fail(
            f"{option} takes a duration such as 12h or 30d", code=output.USAGE, as_json=as_json
        )
    return ms / 1000


async def _all(store: "Store") -> list[KeyRecord]:
    found = []
    for key in await store.keys():
        entry = await store.get(key)
        if entry is not None and entry.value is not None:
            found.append(msgspec.json.decode(entry.value, type=KeyRecord))
    return found


async def _one(store: "Store", key_id: str, *, as_json: bool) -> tuple[KeyRecord, int]:
    entry = await store.get(key_id) if ID_PATTERN.fullmatch(key_id) else None
    if entry is None or entry.value is None:
        output.fail(
            f"there is no key {key_id[:60]!r}: `breakwater keys list` shows their ids",
            code=output.FAILED,
            as_json=as_json,
        )
    return msgspec.json.decode(entry.value, type=KeyRecord), entry.revision


def _facts(record: KeyRecord, now: float) -> dict[str, object]:
    """Of a record, without the digests of its secrets."""
    facts: dict[str, object] = msgspec.to_builtins(record)
    del facts["secrets"]
    return {**facts, "state": issue.state(record, now)}


def _show_once(record: KeyRecord, key: str, *, as_json: bool) -> None:
    if as_json:
        output.say_json({"key": key, **_facts(record, time.time())})
        return
    output.say(key)
    output.note(f"{record.id} of tenant {record.tenant}. It is not shown again: keep it now.")


def _say(record: KeyRecord, sentence: str, *, as_json: bool) -> None:
    if as_json:
        output.say_json(_facts(record, time.time()))
    else:
        output.say(sentence)


def _run(
    work: "Callable[[Store], Awaitable[int]]",
    nats_url: str,
    creds: str | None,
    *,
    as_json: bool,
) -> None:
    from breakwater_gateway.runtime.bus import BusError, BusUnreachable, WrongRevision

    async def go() -> int:
        try:
            async with reach.bus(nats_url, creds, name="cli/keys") as bus:
                return await work(await bus.store(BUCKET))
        except BusUnreachable as error:
            output.fail(str(error), code=output.UNREACHABLE, as_json=as_json)
        except WrongRevision:
            output.fail(
                "somebody else changed the key at the same time: try again",
                code=output.FAILED,
                as_json=as_json,
            )
        except BusError as error:
            output.fail(str(error), code=output.FAILED, as_json=as_json)

    output.run(go, as_json=as_json)
