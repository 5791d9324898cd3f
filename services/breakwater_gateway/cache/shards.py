"""The shards of the semantic index that this process owns: a fair share of them, each by a lease.

Only a shard's owner subscribes to it. An owner makes the index anew from the bucket before it does, one
shard after the other; what it has is renewed meanwhile.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import msgspec
from anyio.abc import TaskGroup

from breakwater_gateway.cache.keeper import Keeper
from breakwater_gateway.cache.semantic import Entry, decode_entry
from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import BusError, Handler, Message, Store, Subscription
from breakwater_gateway.runtime.bus import Entry as Kept
from breakwater_gateway.runtime.leading import RENEWED, RETRIED, Leadership
from breakwater_protocol.cache import SHARDS, Label

LEASE_S: Final = 3


class Shards:
    """`wanted`: anything is to be owned at all; `hears`: an owner's subjects and who hears them."""

    def __init__(
        self,
        context: Context,
        *,
        wanted: Callable[[], bool],
        keeper: Callable[[], Keeper],
        bucket: Callable[[], Awaitable[Store]],
        hears: Callable[[str], Mapping[str, Handler]],
    ) -> None:
        self._context = context
        self._wanted = wanted
        self._peers: dict[str, float] = {}
        self._claiming = asyncio.Lock()
        reading = asyncio.Lock()
        self._all = {
            str(number): _Shard(context, str(number), keeper, bucket, hears, reading)
            for number in range(SHARDS)
        }
        self._retired = False

    def __len__(self) -> int:
        """How many are owned, those included that are still read."""
        return sum(shard.leadership.stands for shard in self._all.values())

    def owns(self, name: str) -> bool:
        return self._all[name].leadership.leads()

    async def start(self, tasks: TaskGroup) -> None:
        """Claim shards in `tasks` from now on; returns when the first are read."""
        await self._claim()
        tasks.start_soon(self._run)
        for shard in self._all.values():
            await shard.leadership.settled()

    def heard_of(self, peer: str) -> None:
        """Another cache lives; not all have to tell so that it counts: `LEASE_S` is long."""
        self._peers[peer] = self._context.clock.now()

    def leaves(self, peer: str) -> None:
        self._peers.pop(peer, None)

    async def silence(self) -> None:
        """Take nothing more, and claim nothing more; what is owned stays so until it is given back."""
        self._retired = True
        for shard in self._all.values():
            shard.leadership.retire()
            await shard.silence()

    async def give_back(self, why: str) -> None:
        """All of them. Raises `BusError` or `TimeoutError`: then their leases end by themselves."""
        async with self._claiming:
            for shard in self._all.values():
                await shard.leadership.resign(why)

    async def renew(self, why: str, change: Callable[[], Awaitable[None]]) -> None:
        """Give all back, `change` what they are made of, and claim them again in time."""
        async with self._claiming:
            await self._give_back(why, self._all.values())
            await change()

    async def close(self) -> None:
        self._retired = True
        for shard in self._all.values():
            await shard.leadership.close()

    # --- Claiming -----------------------------------------------------------------------------

    async def _run(self) -> None:
        known = True
        while len(self) or not self._retired:
            await asyncio.sleep(LEASE_S * (RENEWED if known else RETRIED))
            known = await self._claim()

    def _share(self) -> int:
        """How many shards are ours to own."""
        if not self._wanted():
            return 0
        now = self._context.clock.now()
        self._peers = {id_: at for id_, at in self._peers.items() if now - at < 2 * LEASE_S}
        return math.ceil(SHARDS / len({*self._peers, self._context.id}))

    async def _claim(self) -> bool:
        """Renew what is owned, take what is free up to a fair share, give back what is above it.

        False: the store did not answer, so who owns which is not known.
        """
        async with self._claiming:
            share = self._share()
            owned = [shard for shard in self._all.values() if shard.leadership.stands]
            others = [shard for shard in self._all.values() if not shard.leadership.stands]
            await self._give_back("more than its share", owned[share:])
            known = all(
                await asyncio.gather(*(shard.leadership.campaign() for shard in owned[:share]))
            )
            for shard in others:
                if len(self) >= share:
                    break
                known = await shard.leadership.campaign() and known
            return known

    async def _give_back(self, why: str, shards: "Iterable[_Shard]") -> None:
        for shard in shards:
            try:
                await shard.leadership.resign(why)
            except (BusError, TimeoutError) as error:
                self._context.log.warning("cache_lease_kept", shard=shard.name, error=repr(error))


class _Shard:
    def __init__(
        self,
        context: Context,
        name: str,
        keeper: Callable[[], Keeper],
        bucket: Callable[[], Awaitable[Store]],
        hears: Callable[[str], Mapping[str, Handler]],
        reading: asyncio.Lock,
    ) -> None:
        self.name = name
        self.leadership = Leadership(context, f"cache-{name}", self, ttl_s=LEASE_S)
        self._context = context
        self._keeper = keeper
        self._bucket = bucket
        self._hears = hears
        self._reading = reading
        self._subscriptions: list[Subscription] = []

    async def catch_up(self) -> None:
        """Make the shard's index anew, from what the bucket has of it."""
        async with self._reading:
            keeper, wall = self._keeper(), self._context.clock.wall()
            keeper.drop_shard(self.name)
            refused: dict[str, int] = {}
            loaded = 0

            def take(kept: Kept) -> None:
                nonlocal loaded
                if not (reason := self._load(keeper, kept, wall)):
                    loaded += 1
                else:
                    refused[reason] = refused.get(reason, 0) + 1
                    self._context.metrics.counter(
                        "breakwater_cache_semantic_refused_total", reason=reason
                    ).add()

            store = await self._bucket()
            await store.load(f"e.{self.name}", take)
            await store.load(f"l.{self.name}", lambda kept: self._load_label(keeper, kept))
        self._context.log.info("cache_shard_read", shard=self.name, entries=loaded, refused=refused)

    async def lead(self) -> None:
        bus = self._context.bus
        for subject, handler in self._hears(self.name).items():
            self._subscriptions.append(
                await bus.subscribe(subject, self._while_owned(handler), queue="cache")
            )

    def follow(self) -> None:
        """Nothing is decided but on what is heard, and that only while it is owned."""

    async def leave(self) -> None:
        await self.silence()
        self._keeper().drop_shard(self.name)

    async def silence(self) -> None:
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.drain()

    def _while_owned(self, handler: Handler) -> Handler:
        """An owner that stood still for too long must not answer for the next one."""

        def hear(message: Message) -> None:
            if self.leadership.leads():
                handler(message)

        return hear

    def _load(self, keeper: Keeper, kept: Kept, wall: float) -> str:
        try:
            entry = decode_entry(kept.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError):
            keeper.refuse(self.name, "malformed")
            return "malformed"
        if kept.key != entry_key(self.name, entry):
            keeper.refuse(self.name, "key")
            return "key"
        return keeper.load(self.name, entry, now=wall)

    def _load_label(self, keeper: Keeper, kept: Kept) -> None:
        try:
            label = msgspec.json.decode(kept.value or b"", type=Label)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        keeper.add_label(self.name, label)


def entry_key(shard: str, entry: Entry) -> str:
    """Of the bucket."""
    return f"e.{shard}.{entry.id}"
