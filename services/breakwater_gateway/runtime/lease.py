"""Lease: the right to own something, as a key with a short life in the bucket `bw_lease`."""

import asyncio
from typing import Final

from breakwater_gateway.runtime.bus import Bus, Store, WrongRevision
from breakwater_gateway.runtime.clock import Clock

BUCKET: Final = "bw_lease"
MARGIN_S: Final = 0.2
"""A holder stops this much before its lease ends, so that two never hold it at once."""
CALL_S: Final = 1.5


class Lease:
    """At most one holder of `key` at a time. Renew it at least every third of `ttl_s`."""

    def __init__(self, bus: Bus, clock: Clock, key: str, holder: str, *, ttl_s: int) -> None:
        self._bus = bus
        self._clock = clock
        self._key = key
        self._holder = holder.encode()
        self._ttl_s = ttl_s
        self._store: Store | None = None
        self._revision: int | None = None
        self._until = 0.0

    def held(self) -> bool:
        return self._clock.now() < self._until

    async def hold(self) -> bool:
        """Renew it, or take it if it is free. Raises `BusError` or `TimeoutError` when that is not known."""
        async with asyncio.timeout(min(CALL_S, self._ttl_s / 3)):
            if self._store is None:
                self._store = await self._bus.store(BUCKET)
            for _ in range(2):
                # Its life begins when the server takes it, so not before now.
                asked_at = self._clock.now()
                try:
                    if self._revision is None:
                        self._revision = await self._store.create(
                            self._key, self._holder, ttl_s=self._ttl_s
                        )
                    else:
                        self._revision = await self._store.update(
                            self._key, self._holder, revision=self._revision, ttl_s=self._ttl_s
                        )
                except WrongRevision:
                    entry = await self._store.get(self._key)
                    if entry is None or entry.value != self._holder:
                        self._revision = None
                        self._until = 0.0
                        break
                    # A renewal that was never confirmed, or an earlier life under this name.
                    self._revision = entry.revision
                else:
                    self._until = asked_at + self._ttl_s - MARGIN_S
                    break
        return self.held()

    async def release(self) -> None:
        """Give it back at once. Raises `BusError`: then it ends by itself."""
        if self._revision is not None and self.held() and self._store is not None:
            self._until = 0.0
            self._revision = None
            await self._store.delete(self._key)
