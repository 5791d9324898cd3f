from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.protocol.fake_gateway import FakeGateway, NatsServer

from breakwater_protocol import Client


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """One that a test may stop."""
    server = NatsServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def gateway(shared_server: NatsServer) -> AsyncIterator[FakeGateway]:
    async with FakeGateway(shared_server.url) as gateway:
        yield gateway


@pytest.fixture
async def client(shared_server: NatsServer) -> AsyncIterator[Client]:
    async with Client(shared_server.url) as client:
        yield client
        # However a request ends, nothing of it stays behind.
        assert client._connection._inboxes == {}
