"""What several tests of the network need."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from multiaddr import Multiaddr


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile: what refers to itself stays."""
    gc.collect()  # what others left
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
async def silent() -> AsyncIterator[bytes]:
    """The address of a TCP server that accepts and says nothing."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield Multiaddr(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}").to_bytes()
