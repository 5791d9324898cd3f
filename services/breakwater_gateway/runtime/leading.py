"""Who leads: a key with a short life in the bucket `bw_lease`, held by one candidate at a time.

Whoever may own something has a `Leadership` of it, which campaigns: it renews the lease or tries for it,
lets the owner read up and take over, and ends its lead when the lease is lost, the bus is gone or the
process stood still for too long. While the owner reads up and while it drains, the lease is renewed.

The lease decides who tries; where two leaders would do harm, what they write has to be fenced besides.
"""

import asyncio
from contextlib import suppress
from typing import Final, Protocol

from anyio.abc import TaskGroup

from breakwater_gateway.runtime.actor import Context
from breakwater_gateway.runtime.bus import Bus, BusClosed, BusError, Store, WrongRevision
from breakwater_gateway.runtime.clock import Clock

LEASE_BUCKET: Final = "bw_lease"
LEASE_S: Final = 2
"""A dead leader is replaced within this and a renewal's interval; whole seconds, as TTLs of KV are."""
MARGIN_S: Final = 0.2
"""A leader stops this much before its lease ends, so that two never lead at once."""
CALL_S: Final = 1.5
"""A call to the store that takes longer has failed."""
RENEWED: Final = 0.3
"""Of its life, after which a lease is renewed."""
RENEW_CALL: Final = 0.25
"""Of its life: one renewal may take so long, and the next still comes before the lease ends."""
RETRIED: Final = 0.05
"""Of its life, after which one that could not be had is tried for again."""
RENEW_S: Final = RENEWED * LEASE_S


class Lease:
    """The right to lead what `key` names. At most one holder at a time."""

    def __init__(self, bus: Bus, clock: Clock, key: str, holder: str, *, ttl_s: int) -> None:
        self.generation = 0
        """Of the time for which it is held without a break: later ones are higher, whoever holds it, for
        as long as the server does not lose its data."""
        self._bus = bus
        self._clock = clock
        self._key = key
        self._holder = holder.encode()
        self._ttl_s = ttl_s
        self._one = asyncio.Lock()
        self._store: Store | None = None
        self._revision: int | None = None
        self._until = 0.0

    def held(self) -> bool:
        return self._clock.now() < self._until

    async def hold(self) -> bool:
        """Renew it, or take it if it is free. Raises `BusError` or `TimeoutError` when that is not known."""
        async with self._one:
            # A renewal must leave time for another; whoever has nothing to lose may wait for a slow disk.
            async with asyncio.timeout(self._ttl_s * RENEW_CALL if self.held() else CALL_S):
                await self._hold()
            return self.held()

    async def _hold(self) -> None:
        store = await self._bucket()
        if not self.held():
            # A server that has lost its data counts anew: what was ours may be the number of another's.
            self._revision = None
        for _ in range(2):
            # Its life begins when the server takes it, so not before now.
            asked_at = self._clock.now()
            unbroken = self.held()
            try:
                if self._revision is None:
                    revision = await store.create(self._key, self._holder, ttl_s=self._ttl_s)
                else:
                    revision = await store.update(
                        self._key, self._holder, revision=self._revision, ttl_s=self._ttl_s
                    )
            except WrongRevision:
                entry = await store.get(self._key)
                ours = entry is not None and entry.value == self._holder
                if entry is None or not ours or (self.generation and not unbroken):
                    # Ours, but not held: a renewal that lay in a connection came after all, and a server
                    # that counts anew may have taken it for one of another's lease. So it has to end first.
                    self._revision = None
                    self._until = 0.0
                    return
                # A renewal of ours that was never confirmed, or an earlier life under this name.
                self._revision = entry.revision
            else:
                self._revision = revision
                if not (unbroken and self.held()):
                    # Also where it lapsed while the answer was under way: an owner that looked then saw
                    # that it leads no more, and left off.
                    self.generation = revision
                self._until = asked_at + self._ttl_s - MARGIN_S
                return

    async def release(self) -> None:
        """Give it back at once. Raises `BusError` or `TimeoutError`: then it ends by itself."""
        async with self._one:
            if self._revision is not None and self.held():
                revision, self._revision, self._until = self._revision, None, 0.0
                async with asyncio.timeout(CALL_S):
                    store = await self._bucket()
                    # By its revision: what arrives late must not end the lease of the next one.
                    with suppress(WrongRevision):
                        await store.delete(self._key, revision=revision)

    async def _bucket(self) -> Store:
        if self._store is None:
            self._store = await self._bus.store(LEASE_BUCKET)
        return self._store


class Owner(Protocol):
    """What leads, and what it does about it. An error that is none of the bus's ends the campaign."""

    async def catch_up(self) -> None:
        """Read what the last leader left; cancelled when the lease is lost meanwhile.

        Raises `BusError` or `TimeoutError` when it cannot be read: that is tried again.
        """
        ...

    async def lead(self) -> None:
        """Begin to decide: `leads()` is true from now on, and may be false again at each return of an await.

        Raises as `catch_up` does.
        """
        ...

    def follow(self) -> None:
        """Decide and answer nothing more. Said once more where `catch_up` or `lead` was under way."""
        ...

    async def leave(self) -> None:
        """End what takes longer, subscriptions above all: before it is taken over again or given back."""
        ...


class Leadership:
    """One candidate's part in the leadership of what `key` names."""

    def __init__(self, context: Context, key: str, owner: Owner, *, ttl_s: int = LEASE_S) -> None:
        self._lease = Lease(context.bus, context.clock, key, context.id, ttl_s=ttl_s)
        self._ttl_s = ttl_s
        self._key = key
        self._owner = owner
        self._log = context.log
        self._stands = False
        self._leading = False
        self.generation = 0
        """Of the last lead: higher than that of any leader before it (see `Lease`)."""
        self._taking: asyncio.Task[None] | None = None
        self._left = True
        self._retired = False

    def leads(self) -> bool:
        """The owner has taken over, and the lease is held at this moment."""
        return self._leading and self._lease.held()

    @property
    def stands(self) -> bool:
        """It leads, or is about to."""
        return self._stands

    async def start(self, tasks: TaskGroup) -> None:
        """Campaign in `tasks` from now on; returns when the first try is over, the owner's part included."""
        await self.campaign()
        tasks.start_soon(self._run)
        await self.settled()

    async def _run(self) -> None:
        known = True
        while self._stands or not self._retired:
            await asyncio.sleep(self._ttl_s * (RENEWED if known else RETRIED))
            known = await self.campaign()

    async def campaign(self) -> bool:
        """Renew the lease or try for it. False: the store did not answer, so who leads is not known."""
        self._reap()
        if self._retired and not self._stands:
            return True
        if not self._lease.held():
            self.lose("the lease lapsed")
        try:
            held = await self._lease.hold()
            if not held:
                self.lose("the lease is another's")
            elif self._lease.generation != self.generation:
                self.lose("the lease lapsed")
            if not self._stands and self._taking is None:
                await self._leave()
                if held and not self._retired:
                    self._take()
        except BusClosed:
            raise
        except (BusError, TimeoutError) as error:
            if not self._lease.held():
                self.lose("the lease lapsed")
            self._log.warning("lease_failed", lease=self._key, error=repr(error))
            return False
        return True

    async def settled(self) -> None:
        """The owner is not in the middle of taking over."""
        if self._taking is not None:
            await asyncio.wait({self._taking})
            self._reap()

    def lose(self, why: str) -> None:
        """Lead no more. The lease may still be held: then it is taken over anew by the next campaign."""
        if not self._stands:
            return
        self._stands = False
        self._left = False
        if self._leading:
            self._leading = False
            self._log.info("lead_lost", lease=self._key, generation=self.generation, why=why)
        elif self._taking is not None and self._taking is not asyncio.current_task():
            self._taking.cancel()
        self._owner.follow()

    def retire(self) -> None:
        """Stand for it no more. What is led stays led, until it is resigned."""
        self._retired = True
        if self._taking is not None:
            self.lose("drained")

    async def resign(self, why: str) -> None:
        """Give it back at once. Raises `BusError` or `TimeoutError`: then the lease ends by itself.

        Whoever campaigns meanwhile takes it again, unless it has retired.
        """
        self.lose(why)
        await self.settled()
        await self._leave()
        await self._lease.release()

    async def close(self) -> None:
        """Ends at once, and tells nobody: the lease ends by itself."""
        self._retired = True
        self.lose("stopped")
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait({self._taking})

    # --- What the owner does ------------------------------------------------------------------

    def _take(self) -> None:
        self._stands = True
        self.generation = self._lease.generation
        self._taking = asyncio.get_running_loop().create_task(self._take_over())

    async def _take_over(self) -> None:
        try:
            await self._owner.catch_up()
            if not self._lease.held():
                self.lose("the lease lapsed")
                return
            self._leading = True
            self._log.info("lead_taken", lease=self._key, generation=self.generation)
            await self._owner.lead()
        except BusClosed:
            self.lose("the bus is closed")
            raise
        except (BusError, TimeoutError) as error:
            self.lose("it could not be taken")
            self._log.warning("lead_not_taken", lease=self._key, error=repr(error))
        except BaseException:
            self.lose("taking it failed")
            raise
        finally:
            if not self._stands:
                # It may have begun what had just been ended.
                self._owner.follow()

    def _reap(self) -> None:
        """Raises what ended the owner's part, unless that was to be expected."""
        if self._taking is not None and self._taking.done():
            taken, self._taking = self._taking, None
            if not taken.cancelled():
                taken.result()

    async def _leave(self) -> None:
        if not self._left:
            await self._owner.leave()
            self._left = True
