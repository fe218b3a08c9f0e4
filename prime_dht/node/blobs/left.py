"""What puts of blobs keep here, above all those that nobody waits for any more: it goes once it is of no use.

A put that was told not to wait, or not for so long, or that was cancelled once its entry was out, leaves its blocks
here: replicas may still fetch them. Now and then, ever less often, those that stored the entry are asked whether they
hold the blob; once enough do, or something else stands in the slot, so that none will, its claim is released. What is
not known any more, after a restart say, stays until the entry ends, as does what was never out for certain.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Slot
from prime_dht.errors import QueryError, StorageError
from prime_dht.ids import PeerId
from prime_dht.net.network import Network
from prime_dht.node.blobs.claims import BlobClaims
from prime_dht.node.blobs.holding import held_by
from prime_dht.node.reader import Reader
from prime_dht.node.results import PutReceipt
from prime_dht.node.writer import Writer
from prime_dht.storage.blocks import Claim

if TYPE_CHECKING:
    from trio_typing import TaskStatus

LOOK_EVERY_S = 60.0
WAIT_FIRST_S = 60.0
WAIT_AT_MOST_S = 3600.0
"""Between two times that it is asked what became of one put, ever longer."""

MOST_FOLLOWED = 1000
"""Of more the blocks of the earliest stay until their entries end. A peer can be asked for so many at a time."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Put:
    """One for which blocks are kept.

    Attributes:
        next_s: when it is asked next what became of it, by trio's clock.
    """

    claim: Claim
    receipt: PutReceipt
    ref: BlobRef
    next_s: float
    wait_s: float = WAIT_FIRST_S


class LeftPuts:
    """See the module."""

    def __init__(self, network: Network, reader: Reader, writer: Writer, claims: BlobClaims) -> None:
        self._network = network
        self._reader = reader
        self._writer = writer
        self._claims = claims
        self._puts: dict[Claim, _Put] = {}

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look what became of them until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self._puts = {claim: put for claim, put in self._puts.items() if self._claims.has_put(claim)}
            now_s = trio.current_time()
            await self._look([put for put in self._puts.values() if put.next_s <= now_s])

    def follow(self, claim: Claim, receipt: PutReceipt, ref: BlobRef) -> None:
        """Look what becomes of a put whose entry is out, while anything is kept for it."""
        self._puts[claim] = _Put(claim, receipt, ref, next_s=trio.current_time() + WAIT_FIRST_S)
        if len(self._puts) > MOST_FOLLOWED:
            del self._puts[next(iter(self._puts))]

    async def is_superseded(self, receipt: PutReceipt, ref: BlobRef) -> bool:
        """Whether something else than a blob stands in the slot of an entry of this node that refers to it.

        What replicas say of that alone is not believed: a newer entry has to be found. ``False`` if nobody can tell.
        """
        slot = Slot(receipt.key, self._network.local, receipt.subkey)
        try:
            if not receipt.superseded and await self._writer.last_written_us(slot) <= receipt.created_at_us:
                return False
            found = await self._reader.get(
                slot.key, slot.subkey, frozenset({slot.publisher}), wanted_quorum=None, latest=True
            )
        except (QueryError, StorageError) as error:
            logger.debug("whether a put still stands cannot be told: %s", error)
            return False
        return found is None or (found.created_at_us > receipt.created_at_us and found.blob != ref)

    async def _look(self, puts: Sequence[_Put]) -> None:
        asked: dict[PeerId, set[Cid]] = defaultdict(set)
        for put in puts:
            for peer in put.receipt.stored_by:
                asked[peer].add(put.claim.root)
        held: dict[PeerId, set[Cid]] = {}

        async def ask(peer: PeerId, roots: set[Cid]) -> None:
            held[peer] = roots if peer == self._network.local else await held_by(self._network, peer, roots)

        async with trio.open_nursery() as nursery:
            for peer, roots in asked.items():
                nursery.start_soon(ask, peer, roots)
        for put in puts:
            holders = [peer for peer in put.receipt.stored_by if put.claim.root in held[peer]]
            try:
                if len(holders) >= put.receipt.needed:
                    await self._claims.put_held(put.claim)
                elif await self.is_superseded(put.receipt, put.ref):
                    await self._claims.put_done(put.claim)
            except StorageError as error:
                logger.warning("blocks that a put has left cannot be released now: %s", error)
            put.wait_s = min(2 * put.wait_s, WAIT_AT_MOST_S)
            put.next_s = trio.current_time() + put.wait_s
