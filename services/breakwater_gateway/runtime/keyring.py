"""The keys of a process's actors: a view of the bucket `bw_keys`, live within a second everywhere."""

import msgspec

from breakwater_gateway.runtime.bus import Bus, Entry, Watch
from breakwater_gateway.runtime.telemetry import Log
from breakwater_protocol.keys import BUCKET, KeyBoard
from breakwater_protocol.subjects import BadToken, decode_token


class Keyring:
    """`board` is what holds now. A bucket that cannot be read leaves it as it was."""

    def __init__(self, log: Log) -> None:
        self.board = KeyBoard()
        self._log = log
        self._watch: Watch | None = None

    async def start(self, bus: Bus) -> None:
        """Raises `BusError`."""
        store = await bus.store(BUCKET)
        self._watch = await store.watch(self._see)

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()

    def _see(self, entry: Entry) -> None:
        try:
            self.board.fold(decode_token(entry.key), entry.value, entry.revision)
        except (msgspec.MsgspecError, BadToken) as error:
            self._log.warning("bad_key_record", key=entry.key[:100], error=str(error)[:200])
