"""What liars say. A lie is told on the way: the liar itself is a node like any other, and does not know."""

from __future__ import annotations

from random import Random
from typing import assert_never

from multiaddr import Multiaddr

from prime_dht.ids import PeerId
from prime_dht.testing.hostile import damaged
from prime_dht.testing.memory_network import Lie
from prime_dht.testing.simulation.plan import Falsehood
from prime_dht.wire.kad import PeerRecord, Request, decode_reply, encode_reply

FALSE_PEERS = 10


def lie_of(falsehood: Falsehood, rng: Random) -> Lie:
    """A lie that draws what it says from ``rng``."""

    def false_peers(request: Request, answer: bytes) -> bytes:
        reply = decode_reply(request, answer)
        displaced = tuple(PeerRecord(record.peer, (_address(rng),)) for record in reply.closer)
        invented = tuple(PeerRecord(_peer(rng), (_address(rng),)) for _ in range(FALSE_PEERS))
        return encode_reply(request, reply._replace(closer=displaced + invented))

    match falsehood:
        case Falsehood.FALSE_PEERS:
            return false_peers
        case Falsehood.DAMAGE:
            return lambda _request, answer: damaged(answer, rng)
        case Falsehood.NO_ANSWER:
            return lambda _request, _answer: None
        case _:
            assert_never(falsehood)


def _peer(rng: Random) -> PeerId:
    return PeerId(b"\x12\x20" + rng.randbytes(32))


def _address(rng: Random) -> bytes:
    return bytes(Multiaddr(f"/ip4/{rng.randint(190, 195)}.{rng.randint(0, 255)}.0.1/tcp/4001").to_bytes())
