"""What an adversary sends, bytes that were valid once, and a host to send it from.

Random bytes hardly get past the first field of anything. A *damaged* message is a valid one with a few faults of the
kinds that parsers fail at: bits that flipped, a length that lies, a part that is missing, there twice, or elsewhere.

>>> damaged(b"a message that was valid once", Random(5))
b'a message that was v\\xeeal'
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from libp2p.abc import IHost, IMuxedConn, IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamError

from prime_dht.errors import LocalProtocolError
from prime_dht.ids import PeerId
from prime_dht.net.hardening.parts import parts_of
from prime_dht.testing.memory_network import MemoryNetwork, World
from prime_dht.testing.memory_streams import Call
from prime_dht.wire.frames import encode_frame
from prime_dht.wire.kad import Reply, Request, decode_request

MAX_FAULTS = 3

_NUMBERS = (
    b"\x00",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\x80" * 10,
    b"\xff" * 9,
)
"""What a length, a tag or a count may be replaced by: the ends of its range, and encodings that never end."""


def damaged(data: bytes, rng: Random) -> bytes:
    """``data`` with one to :data:`MAX_FAULTS` faults, which may leave it valid."""
    for _ in range(rng.randint(1, MAX_FAULTS)):
        data = rng.choice(_FAULTS)(data, rng)
    return data


def _flip_a_bit(data: bytes, rng: Random) -> bytes:
    start = rng.randint(0, max(0, len(data) - 1))
    return data[:start] + bytes(byte ^ 1 << rng.randint(0, 7) for byte in data[start : start + 1]) + data[start + 1 :]


def _lie_about_a_number(data: bytes, rng: Random) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + rng.choice(_NUMBERS) + data[start + rng.randint(0, 1) :]


def _cut_off(data: bytes, rng: Random) -> bytes:
    return data[: rng.randint(0, len(data))]


def _leave_out(data: bytes, rng: Random) -> bytes:
    start, end = _part(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: Random) -> bytes:
    start, end = _part(data, rng)
    return data[:start] + data[start:end] * rng.choice((2, 3, 100)) + data[end:]


def _move(data: bytes, rng: Random) -> bytes:
    start, end = _part(data, rng)
    rest = data[:start] + data[end:]
    to = rng.randint(0, len(rest))
    return rest[:to] + data[start:end] + rest[to:]


def _insert_noise(data: bytes, rng: Random) -> bytes:
    start = rng.randint(0, len(data))
    return data[:start] + bytes(rng.randint(0, 255) for _ in range(rng.randint(1, 8))) + data[start:]


def _part(data: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randint(0, len(data))
    return start, rng.randint(start, min(len(data), start + 64))


_FAULTS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _flip_a_bit,
    _lie_about_a_number,
    _cut_off,
    _leave_out,
    _repeat,
    _move,
    _insert_noise,
)


Lie = Callable[[Request], bytes | None]
"""What an adversary answers: the bytes of a message, or nothing, for ever."""


class Liar(MemoryNetwork):
    """A server in a :class:`~prime_dht.testing.memory_network.World` whose answers nobody checks before they leave."""

    def __init__(self, world: World, local: PeerId, lie: Lie) -> None:
        super().__init__(world, local, _nobody, listens=True)
        world._networks[local] = self
        self.asked = 0
        self._lie = lie

    def take(self, call: Call) -> None:
        self.asked += 1
        answer = self._lie(decode_request(call.message))
        if answer is not None:
            call.answer = answer
            call.done.set()


async def _nobody(_peer: PeerId, _request: Request) -> Reply:
    raise LocalProtocolError("a liar has no handler")


class Intruder:
    """A host that is connected to a node and keeps to no protocol above the muxer's.

    Args:
        host: of :func:`prime_dht.net.host.open_host`.
        target: the node's host.
    """

    def __init__(self, host: IHost, target: IHost) -> None:
        self._swarm = parts_of(host)[1]
        self._address = target.get_transport_addrs()[0]
        self._target = target.get_id()
        self.peer = PeerId(host.get_id().to_bytes())

    @property
    def is_connected(self) -> bool:
        return bool(self._open_connections())

    async def connect(self) -> None:
        await self._swarm.dial_addr(self._address, self._target)

    async def send(self, protocol: str, data: bytes) -> IMuxedStream:
        """Open a stream, connecting first if need be; name the protocol and send ``data`` without waiting."""
        if not self.is_connected:
            await self.connect()
        stream = await self._open_connections()[0].open_stream()
        lines = (f"{line}\n".encode() for line in ("/multistream/1.0.0", protocol))
        await stream.write(b"".join(map(encode_frame, lines)) + data)
        return stream

    def _open_connections(self) -> list[IMuxedConn]:
        return [one.muxed_conn for one in self._swarm.get_connections(self._target) if not one.is_closed]


async def everything_from(stream: IMuxedStream) -> tuple[bytes, bool]:
    """What comes on a stream until its end, and whether it ended in order, and not by a reset."""
    received = b""
    while True:
        try:
            received += await stream.read(65_536)
        except MuxedStreamEOF:
            return received, True
        except MuxedStreamError:
            return received, False
