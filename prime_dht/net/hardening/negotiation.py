"""A3, and the root of P1: a multistream line is short and is text.

Defects (py-libp2p 0.8.1): multistream-select reads a length of up to 64 bits and then asks the transport for that many
bytes in one piece, up to a hundred times, keeping them all; on a fresh TCP connection this is before anybody has said
who they are. A line that is not UTF-8 raises ``UnicodeDecodeError``, which no caller expects.

Why this works: all six negotiations of a host (security, muxer and streams, each as server and as client) read through
a reader that refuses to read more than a line can hold, as go-libp2p's does, and what cannot be decoded fails like any
other negotiation.

A client also waits for the header of the other end before it says what it wants, which costs each negotiation a round
trip and a packet. The specification allows it to send both at once, and so does this one.

It can go when ``read_delim`` takes a limit, ``MultiselectCommunicator.read`` translates the decoding error, and clients
send their first choice with the header.
"""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.abc import IMultiselectCommunicator
from libp2p.custom_types import StreamHandlerFn, TProtocol
from libp2p.exceptions import ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.swarm import Swarm
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.protocol_muxer.multiselect import DEFAULT_NEGOTIATE_TIMEOUT, Multiselect
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import encode_delim

MAX_LINE_BYTES = 1024
"""The longest line accepted, newline included: go-multistream's limit."""


class _ShortReads(ReadWriteCloser):
    """A connection or stream from which no more than a line is read at once."""

    def __init__(self, inner: ReadWriteCloser) -> None:
        self._inner = inner

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > MAX_LINE_BYTES:
            raise ParseError(f"a multistream line is at most {MAX_LINE_BYTES} bytes long, not {n}")
        return await self._inner.read(n)

    async def write(self, data: bytes) -> None:
        await self._inner.write(data)

    async def close(self) -> None:
        await self._inner.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._inner.get_remote_address()


class _EarlyChoice(_ShortReads):
    """The same for a client: its first line, the header, takes along its second, which is what it wants most."""

    def __init__(self, inner: ReadWriteCloser, choice: bytes) -> None:
        super().__init__(inner)
        self._choice = choice
        self._lines = 0

    async def write(self, data: bytes) -> None:
        self._lines += 1
        if self._lines == 1:
            await super().write(data + self._choice)
        elif self._lines > 2:
            await super().write(data)


def _connection_of(communicator: IMultiselectCommunicator) -> ReadWriteCloser:
    assert isinstance(communicator, MultiselectCommunicator)
    return communicator.read_writer


def _guard_server(server: Multiselect) -> None:
    stock = server.negotiate

    async def negotiate(
        communicator: IMultiselectCommunicator, negotiate_timeout: int = DEFAULT_NEGOTIATE_TIMEOUT
    ) -> tuple[TProtocol | None, StreamHandlerFn | None]:
        try:
            return await stock(MultiselectCommunicator(_ShortReads(_connection_of(communicator))), negotiate_timeout)
        except UnicodeDecodeError as error:
            raise MultiselectError("a multistream line is not UTF-8") from error

    server.negotiate = negotiate  # type: ignore[method-assign]


def _guard_client(client: MultiselectClient) -> None:
    stock = client.select_one_of

    async def select_one_of(
        protocols: Sequence[TProtocol],
        communicator: IMultiselectCommunicator,
        negotiate_timeout: int = DEFAULT_NEGOTIATE_TIMEOUT,
    ) -> TProtocol:
        choice = b"".join(encode_delim(protocol.encode()) for protocol in protocols[:1])
        early = MultiselectCommunicator(_EarlyChoice(_connection_of(communicator), choice))
        try:
            return await stock(protocols, early, negotiate_timeout)
        except UnicodeDecodeError as error:
            raise MultiselectClientError("a multistream line is not UTF-8") from error

    client.select_one_of = select_one_of  # type: ignore[method-assign]


def guard_negotiation(host: BasicHost, swarm: Swarm) -> None:
    """Bound the lines of every multistream negotiation of a host, and save its clients a round trip."""
    upgrader = swarm.upgrader
    for server in (host.multiselect, upgrader.security_multistream.multiselect, upgrader.muxer_multistream.multiselect):
        _guard_server(server)
    for client in (
        host.multiselect_client,
        upgrader.security_multistream.multiselect_client,
        upgrader.muxer_multistream.multiselect_client,
    ):
        _guard_client(client)
