"""The right to decide: a key with a short life in a bucket, held by one instance of health at a time."""

import asyncio
from typing import Final

from breakwater_gateway.runtime.bus import Bus, Store, WrongRevision
from breakwater_gateway.runtime.clock import Clock

LEASE_BUCKET: Final = "bw_lease"
LEASE_KEY: Final = "health"

LEASE_S: Final = 2
"""A dead leader is replaced within this and a renewal's interval; whole seconds, as TTLs of KV are."""
LEASE_MARGIN_S: Final = 0.2
"""A leader stops this much before its lease ends, so that two never publish at once."""
RENEW_CALL_S: Final = 0.5
"""One renewal may time out, and the next still comes before the lease ends."""
CALL_S: Final = 1.5
"""Any other call to the store that takes longer has failed."""


class Lease:
    """The right to decide, by a key with a short life in `bw_lease`. At most one holder at a time."""

    def __init__(self, bus: Bus, clock: Clock, holder: str) -> None:
        self._bus = bus
        self._clock = clock
        self._holder = holder.encode()
        self._store: Store | None = None
        self._revision: int | None = None
        self._until = 0.0

    def held(self) -> bool:
        return self._clock.now() < self._until

    async def hold(self) -> bool:
        """Renew it, or take it if it is free. Raises `BusError` or `TimeoutError` when that is not known."""
        # A renewal must leave time for another; whoever has nothing to lose may wait for a slow disk.
        async with asyncio.timeout(RENEW_CALL_S if self.held() else CALL_S):
            store = await self._bucket()
            for _ in range(2):
                # Its life begins when the server takes it, so not before now.
                asked_at = self._clock.now()
                try:
                    if self._revision is None:
                        self._revision = await store.create(LEASE_KEY, self._holder, ttl_s=LEASE_S)
                    else:
                        self._revision = await store.update(
                            LEASE_KEY, self._holder, revision=self._revision, ttl_s=LEASE_S
                        )
                except WrongRevision:
                    entry = await store.get(LEASE_KEY)
                    if entry is None or entry.value != self._holder:
                        self._revision = None
                        self._until = 0.0
                        break
                    # A renewal of ours that was never confirmed, or an earlier life under this name.
                    self._revision = entry.revision
                else:
                    self._until = asked_at + LEASE_S - LEASE_MARGIN_S
                    break
        return self.held()

    async def release(self) -> None:
        if self._revision is not None and self.held():
            self._until = 0.0
            self._revision = None
            store = await self._bucket()
            await store.delete(LEASE_KEY)

    async def _bucket(self) -> Store:
        if self._store is None:
            self._store = await self._bus.store(LEASE_BUCKET)
        return self._store
