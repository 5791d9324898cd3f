"""What the index has and the bucket has not yet: the latest value of each key, bounded, brought over soon."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final

from breakwater_gateway.runtime.bus import BusClosed, BusError, Store, WrongRevision
from breakwater_gateway.runtime.telemetry import Log

UNKEPT_MAX: Final = 20_000
"""Keys that wait to be written to the bucket …"""
UNKEPT_BYTES: Final = 16 * 1024 * 1024
"""… and their values: what comes when they are more is in the index alone."""
KEPT_AT_ONCE: Final = 16
KEEP_CALL_S: Final = 2.0
KEEP_RETRY_S: Final = 0.2


class Unkept:
    def __init__(self, bucket: Callable[[], Awaitable[Store]], log: Log) -> None:
        self._bucket = bucket
        self._log = log
        self._values: dict[str, bytes | None] = {}
        """None: to be deleted."""
        self._ttl: dict[str, int | None] = {}
        self._bytes = 0
        self._some = asyncio.Event()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def put(self, key: str, value: bytes | None, ttl_s: int | None) -> bool:
        """False: there is no room, and the bucket will not have it."""
        held = self._bytes - len(self._values.get(key) or b"") + len(value or b"")
        if key not in self._values and (
            len(self._values) >= UNKEPT_MAX or (value and held > UNKEPT_BYTES)
        ):
            return False
        self._bytes = held
        self._values[key] = value
        self._ttl[key] = ttl_s
        self._some.set()
        return True

    def stop(self) -> None:
        """`run` ends soon; what waits still may be kept, some by some."""
        self._stopped = True
        self._some.set()

    async def run(self) -> None:
        while not self._stopped:
            await self._some.wait()
            self._some.clear()
            while self._values and not self._stopped:
                if not await self.keep_some():
                    await asyncio.sleep(KEEP_RETRY_S)

    async def keep_some(self) -> bool:
        """Several at once: a write takes a round trip, and the index changes faster. False: not all."""
        some = list(itertools.islice(self._values.items(), KEPT_AT_ONCE))
        return all(await asyncio.gather(*(self._keep_one(key, value) for key, value in some)))

    async def _keep_one(self, key: str, value: bytes | None) -> bool:
        try:
            async with asyncio.timeout(KEEP_CALL_S):
                await self._write(key, value)
        except BusClosed:
            raise
        except (BusError, TimeoutError) as error:
            self._log.warning("cache_not_kept", error=repr(error))
            return False
        if key in self._values and self._values[key] is value:
            del self._values[key]
            self._bytes -= len(value or b"")
            self._ttl.pop(key, None)
        return True

    async def _write(self, key: str, value: bytes | None) -> None:
        store = await self._bucket()
        if value is None:
            await store.delete(key)
            return
        ttl_s = self._ttl.get(key)
        try:
            await store.create(key, value, ttl_s=ttl_s)
        except WrongRevision:
            known = await store.get(key)
            if known is not None:
                await store.update(key, value, revision=known.revision, ttl_s=ttl_s)
