"""A peer that misuses rounds of sync, over streams in memory or real ones.

A :class:`Rogue` keeps to the protocol as far as it likes: a :class:`~prime_dht.sync.round.Round` over a store in memory
plays its honest part. What it does instead is a few lines of a test.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from random import Random
from typing import assert_never

from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht.entries.codec import inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import QueryError
from prime_dht.ids import Key, TimestampUs
from prime_dht.net.network import Conversation
from prime_dht.partition.parameters import PARAMETERS
from prime_dht.sync.actions import Closed
from prime_dht.sync.messages import (
    Answer,
    AskCells,
    AskChecksums,
    AskIds,
    AskSymbols,
    CellsTold,
    ChecksumsTold,
    Foreign,
    IdsTold,
    Message,
    Network,
    Open,
    Question,
    SymbolsTold,
    Turn,
)
from prime_dht.sync.round import Round
from prime_dht.testing.sync_pair import Base, Party, Side
from prime_dht.wire.sync import SyncCodec

NETWORK = Network(network_id="prime", parameters=PARAMETERS, max_ttl_us=Limits().max_ttl_us)
"""That of nodes that are not configured."""

HOUR_US = 3_600_000_000
_WRITER = create_new_key_pair(b"rogue publisher".ljust(32)).private_key


def signed_entries(count: int, *, now_us: int, name: str = "", value: bytes = b"value") -> list[Entry]:
    """Ops of that many keys that any node admits."""
    return [
        sign_entry(
            EntryHeader(
                network_id=NETWORK.network_id,
                key=Key(b"/prime/%b/%d" % (name.encode(), number)),
                created_at_us=TimestampUs(now_us),
                expires_at_us=TimestampUs(now_us + HOUR_US),
                retain_until_us=TimestampUs(now_us + HOUR_US),
                content=inline(value),
            ),
            _WRITER,
            value,
        )
        for number in range(count)
    ]


async def drained(conversation: Conversation) -> None:
    """Read, and say nothing, until the other ends the stream."""
    try:
        while await conversation.receive() is not None:
            pass
    except QueryError:
        pass


class Rogue:
    """See the module.

    Args:
        now_us: what its clock says, which stands still.
        entries: what it stores.

    Attributes:
        codec: for what it says of its own accord.
        owes_a_message: whether it left a round although it was its turn to speak.
    """

    def __init__(self, *, now_us: int, entries: Iterable[Entry] = (), seed: int = 1) -> None:
        self.codec = SyncCodec(NETWORK)
        self.party = Party(Base(0, now_us=now_us, network=NETWORK), network=NETWORK, now_us=now_us)
        self.party.put(entries)
        self.owes_a_message = False
        self._rng = Random(seed)  # noqa: S311 - a simulation, nothing secret

    def opening(self) -> Open:
        """How it begins a round, if it does so properly."""
        (message,) = self._initiating().run()
        assert isinstance(message, Open)
        return message

    async def say(self, conversation: Conversation, *messages: Message) -> None:
        for message in messages:
            await conversation.send(self.codec.encode(message))

    async def hear(self, conversation: Conversation) -> Message | None:
        """The other's next message; ``None`` if it has ended the stream."""
        body = await conversation.receive()
        if body is None:
            return None
        message = self.codec.decode(body)
        assert not isinstance(message, Foreign)
        return message

    async def begin(self, conversation: Conversation, *, messages: int = sys.maxsize) -> int:
        """Begin a round and take part until it is over, or until so many messages are sent; returns how many were."""
        return await self._take_part(conversation, self._initiating(), messages)

    async def follow_suit(self, conversation: Conversation, *, messages: int = sys.maxsize) -> int:
        """The same in a round that the other begins."""
        opened = await self.hear(conversation)
        assert isinstance(opened, Open)
        return await self._take_part(
            conversation, Side(self.party, Round.accept(self.party.node(), opened, rng=self._rng)), messages
        )

    async def answer(self, conversation: Conversation, answer: Callable[[Turn], Turn]) -> None:
        """Reply to every turn of a leader with what ``answer`` makes of it, until the stream ends."""
        while isinstance(turn := await self.hear(conversation), Turn):
            await self.say(conversation, answer(turn))

    def _initiating(self) -> Side:
        nonce = self._rng.getrandbits(32)
        return Side(self.party, Round.initiate(self.party.node(), nonce=nonce, rng=self._rng))

    async def _take_part(self, conversation: Conversation, side: Side, messages: int) -> int:
        sent = 0
        while True:
            for message in side.run():
                if sent == messages:
                    self.owes_a_message = True
                    return sent
                await self.say(conversation, message)
                sent += 1
            if side.outcome is not None:
                return sent
            heard = await self.hear(conversation)
            side.inbox.append(Closed() if heard is None else heard)


def noise(rng: Random) -> Callable[[Turn], Turn]:
    """Answers of the right form with no truth in them."""

    def answer(question: Question) -> Answer:
        match question:
            case AskSymbols():
                return SymbolsTold(rng.randbytes(question.answer_bytes))
            case AskChecksums(arcs):
                return ChecksumsTold(rng.randbytes(4 * len(arcs)))
            case AskCells():
                return CellsTold({})
            case AskIds():
                return IdsTold(tuple(sorted(rng.randbytes(16) for _ in range(100))))
            case _:
                assert_never(question)

    return lambda turn: Turn(answers=tuple(map(answer, turn.questions)))
