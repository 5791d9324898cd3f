"""Which worker has the work: for tests that kill it."""

import asyncio

from tests.e2e.processes import PATIENCE_S, Process

from breakwater_protocol import Client
from breakwater_protocol.subjects import Subjects

SUBJECTS = Subjects()


class Workers:
    """Two workers beside everything else, and which of them has the work."""

    def __init__(self, root_url: str, nats: str, processes: list[Process]) -> None:
        self.root_url = root_url
        self.nats = nats
        self.processes = processes

    async def holder(self, client: Client) -> Process:
        """The worker that says it has something in flight."""
        subject = SUBJECTS.heartbeat
        beats = client.listen(subject.any())
        try:
            async with asyncio.timeout(PATIENCE_S):
                async for heard in beats:
                    beat = subject.decode(heard.data)
                    if beat.actor == "worker" and beat.in_flight:
                        (process,) = [p for p in self.processes if beat.id in p.stderr]
                        return process
        finally:
            await beats.aclose()
        raise AssertionError("no worker holds anything")
