"""Two kinds of host to set side by side: py-libp2p's own, as its ``new_host`` makes it, and ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.basic_host import BasicHost
from multiaddr import Multiaddr

from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, open_host

OpenHost = Callable[..., AbstractAsyncContextManager[BasicHost]]

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def _stock(*, listen: tuple[str, ...] = (LOOPBACK,), **options: Any) -> AsyncIterator[BasicHost]:
    host, _ = parts_of(new_host(key_pair=create_new_key_pair(), **options))
    async with host.run([Multiaddr(address) for address in listen]):
        try:
            yield host
        finally:
            with trio.CancelScope() as scope:
                scope.shield = True
                await host.close()


@asynccontextmanager
async def _ours(
    *, listen: tuple[str, ...] = (LOOPBACK,), identify_all: bool = True, **settings: Any
) -> AsyncIterator[BasicHost]:
    key_pair = create_new_key_pair()
    async with open_host(HostSettings(key_pair=key_pair, listen=listen, identify_all=identify_all, **settings)) as host:
        yield parts_of(host)[0]


@pytest.fixture
def stock() -> OpenHost:
    """Opens an unguarded host; takes what ``new_host`` takes."""
    return _stock


@pytest.fixture
def ours() -> OpenHost:
    """Opens a guarded host; takes the fields of HostSettings. Unlike by default it identifies all, as a stock one."""
    return _ours


@pytest.fixture
async def silent_server() -> AsyncIterator[Multiaddr]:
    """The address of a TCP server that agrees on Noise and then says nothing more."""

    async def agree_and_fall_silent(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\x13/multistream/1.0.0\n" + b"\x07/noise\n")
        await trio.sleep_forever()

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, agree_and_fall_silent, [listener])
        yield Multiaddr(f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()
