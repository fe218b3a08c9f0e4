"""What several tests of the network need."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from multiaddr import Multiaddr


@pytest.fixture
async def silent() -> AsyncIterator[bytes]:
    """The address of a TCP server that accepts and says nothing."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Multiaddr(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}").to_bytes()
