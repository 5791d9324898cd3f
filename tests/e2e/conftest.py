"""One gateway and one simulator for the session: tests share them, and use models of their own."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import nats
import openai
import pytest
from nats.aio.client import Client as Nats
from tests.e2e.processes import PATIENCE_S, Gateway, Simulator, config

from breakwater_protocol import Client


@pytest.fixture(scope="session")
def workplace() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="breakwater-e2e-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def simulator(workplace: Path) -> Iterator[Simulator]:
    process = Simulator(workplace / "simulator")
    yield process
    process.end()


@pytest.fixture(scope="session")
def gateway(workplace: Path, simulator: Simulator) -> Iterator[Gateway]:
    """`breakwater up` with the configuration of `processes.config`; it must end well."""
    process = Gateway(workplace / "gateway", config=config(simulator))
    yield process
    process.end()


@pytest.fixture(scope="session")
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=gateway.root_url, trust_env=False, timeout=PATIENCE_S, http2=False
    ) as client:
        yield client


@pytest.fixture(scope="session")
def sdk(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def nats_client(gateway: Gateway) -> AsyncIterator[Client]:
    async with Client(gateway.nats) as client:
        yield client


@pytest.fixture
async def plain(gateway: Gateway) -> AsyncIterator[Nats]:
    """nats-py as anybody uses it, but for an ended connection, which is for good."""
    client = await nats.connect(gateway.nats, allow_reconnect=False)
    yield client
    await client.close()
