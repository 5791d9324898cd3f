"""Tests in virtual time: an hour of waiting takes none.

@pytest.fixture
def anyio_backend():
    return ("asyncio", {"loop_factory": VirtualTimeLoop})
"""

from breakwater_gateway.runtime.virtual_time import DEADLOCK_S, START, Deadlock, VirtualTimeLoop

__all__ = ["DEADLOCK_S", "START", "Deadlock", "VirtualTimeLoop"]
