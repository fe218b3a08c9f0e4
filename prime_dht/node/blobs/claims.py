"""Which blobs this node keeps for entries: a claim in the block store for each entry that it stores and that needs one.

An entry's claim is on the account of its publisher and labelled with its op id. It is taken *before* the entry enters
the store, so whatever is stored is claimed, also after a crash; that is also when limits are held against it. A put of
an entry whose blob this node would not fetch is refused, and its writer hears why. What sync brings is stored all the
same, without its blob: otherwise blobs that nobody can keep would keep replicas from being equal. The latest of these
are tried again in every sweep, for there may be room by then.

What claims are for entries that left, or never came, or have expired, comes out when the entry store is asked, which is
done in every *sweep*: no other book is kept. A claim taken a moment ago is left alone, for its entry is on its way.

An entry store may have outlived its blocks, which lay in memory or were deleted. When no claims are found at start, all
entries are gone through.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.entries.limits import Limits
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs, short
from prime_dht.node.clock import Clock
from prime_dht.storage.base import OP_ID_BYTES, StorageBackend
from prime_dht.storage.blocks import BlockStore, Claim, NoRoomError, RootStatus

logger = logging.getLogger(__name__)

PIN = b"pin"
"""The label of what this node's user wants kept."""

PUT = b"put:"
"""The label of what a put keeps until replicas hold it, with the time at which its entry ends at the latest, in
microseconds, 8 bytes, big-endian."""

ENTRIES_IN_PAGE = 100
OPS_IN_PAGE = 16_384
FRESH_S = 60.0
"""How long a claim is left alone whose entry is not there: none takes so long to be stored."""

MAX_UNKEPT = 1000
"""Entries without their blobs that are remembered: to try them again, and to say only once why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBlob:
    """A blob that an entry refers to.

    Attributes:
        is_by_put: whether somebody who put the entry may be waiting for it.
        since_s: when it was claimed, by trio's clock.
    """

    op_id: OpId
    root: Cid
    size: int
    key: Key
    publisher: PeerId
    created_at_us: TimestampUs
    is_by_put: bool
    since_s: float

    @property
    def claim(self) -> Claim:
        return Claim(root=self.root, owner=self.publisher, label=self.op_id)


class BlobClaims:
    """See the module.

    Attributes:
        kept: by op id.
        changed: set when there is something new to do; whoever waits for it makes a new one.
    """

    def __init__(self, blocks: BlockStore, storage: StorageBackend, limits: Limits, clock: Clock) -> None:
        self._blocks = blocks
        self._storage = storage
        self._limits = limits
        self._clock = clock
        self._unkept: dict[OpId, None] = {}
        self._new: dict[OpId, KeptBlob] = {}
        self._released: list[Cid] = []
        self._puts: dict[Claim, int] = {}  # and when their entries end
        self._left: set[Claim] = set()  # of these, those that no put is waiting for
        self.kept: dict[OpId, KeptBlob] = {}
        self.changed = trio.Event()

    async def claim(self, entries: Iterable[Entry], *, is_by_put: bool) -> dict[OpId, str]:
        """Claim what entries refer to that are about to be stored; returns those whose blob is not kept, and why.

        Raises:
            StorageError: the block store failed.
        """
        unkept: dict[OpId, str] = {}
        for entry in entries:
            try:
                blob = _kept_blob(entry, self._clock.now_us(), is_by_put=is_by_put)
                if blob is not None and blob.op_id not in self.kept:
                    await self._claim(blob)
            except (NoRoomError, ValidationError) as error:
                unkept[entry.op_id] = str(error)
                self._note_unkept(entry, str(error))
        return unkept

    async def unclaim(self, op_ids: Iterable[OpId]) -> None:
        """These entries were not stored after all, or have left the store.

        Raises:
            StorageError: the block store failed; the next sweep does it.
        """
        for op_id in op_ids:
            if (blob := self.kept.get(op_id)) is not None:
                await self._blocks.release(blob.claim)
                self.kept.pop(op_id, None)  # unless another did it meanwhile
                self._released.append(blob.root)

    def take_new(self) -> list[KeptBlob]:
        """What was added since this was called last."""
        new, self._new = self._new, {}
        return list(new.values())

    async def load(self) -> None:
        """Read the claims that the block store has, or, if there are none, all entries."""
        claims = await self._all_claims()
        op_ids = [OpId(claim.label) for claim in claims if _is_for_entry(claim)]
        if claims:
            await self._take_in(op_ids)
        else:
            cursor = b""
            while True:
                page = await self._storage.scan_ops(after=cursor, limit=OPS_IN_PAGE)
                ids = page.op_ids.tobytes()
                await self._take_in([OpId(ids[at : at + OP_ID_BYTES]) for at in range(0, len(ids), OP_ID_BYTES)])
                if not (cursor := page.next_cursor):
                    break
        await self._release(claim for claim in claims if _is_for_entry(claim) and OpId(claim.label) not in self.kept)
        for claim in claims:
            if claim.label.startswith(PUT) and claim not in self._puts:
                self._left.add(claim)
                self._puts[claim] = int.from_bytes(claim.label.removeprefix(PUT), "big")
        self.changed.set()

    async def sweep(self) -> list[Cid]:
        """Release claims whose entries are no longer there, or have expired.

        Returns:
            the roots of all claims that were released since this was called last.
        """
        await self._take_in(list(self._unkept))
        now_us, now_s = self._clock.now_us(), trio.current_time()
        op_ids = [blob.op_id for blob in self.kept.values() if now_s >= blob.since_s + FRESH_S]
        gone: list[OpId] = []
        for start in range(0, len(op_ids), ENTRIES_IN_PAGE):
            page = op_ids[start : start + ENTRIES_IN_PAGE]
            live = {entry.op_id for entry in await self._storage.get_ops(page, now_us=now_us) if entry.is_live(now_us)}
            gone += [op_id for op_id in page if op_id not in live]
        await self.unclaim(gone)
        for put in [put for put, until_us in self._puts.items() if until_us <= now_us]:
            await self.put_done(put)
        released, self._released = self._released, []
        return released

    def put_claim(self, root: Cid, until_us: int) -> Claim:
        """What a put is to claim its blob with; released by :meth:`put_done`, or when its entry ends."""
        claim = Claim(root=root, label=PUT + until_us.to_bytes(8, "big"))
        self._puts[claim] = until_us
        self._left.discard(claim)
        return claim

    async def put_done(self, claim: Claim) -> None:
        """Nothing more is to be kept for a put: it was given up, or its entry has ended."""
        if claim in self._puts:
            await self._blocks.release(claim)  # first: if it fails, a sweep does it once the entry has ended
            self._puts.pop(claim, None)
            self._left.discard(claim)
            self._released.append(claim.root)

    def put_left(self, claim: Claim) -> None:
        """Nobody waits any more for replicas to hold what was put. Unless they do, it is kept until its entry ends."""
        if claim in self._puts:
            self._left.add(claim)

    async def put_held(self, claim: Claim) -> None:
        """Enough replicas hold what was put.

        So nothing need be kept either for a put of the same that nobody waits for, unless its entry lives longer. That
        put was cancelled, or waited in vain, or its process ended.
        """
        until_us = self._puts.get(claim, 0)
        left = [each for each in self._left if each.root == claim.root and self._puts[each] <= until_us]
        for put in (claim, *left):
            await self.put_done(put)

    async def _claim(self, blob: KeptBlob) -> None:
        claims = await self._blocks.claims(blob.root)
        if all(claim.owner != blob.publisher for claim in claims):
            self._limits.check_blobs(await self._blocks.owner_bytes(blob.publisher) + blob.size)
        await self._blocks.claim(blob.claim, size_bytes=blob.size)
        self.kept[blob.op_id] = blob
        self._new[blob.op_id] = blob
        self.changed.set()

    async def _take_in(self, op_ids: Sequence[OpId]) -> None:
        """Claim what the live ones among these entries refer to."""
        now_us = self._clock.now_us()
        for start in range(0, len(op_ids), ENTRIES_IN_PAGE):
            page = op_ids[start : start + ENTRIES_IN_PAGE]
            found = await self._storage.get_ops(page, now_us=now_us)
            unkept = await self.claim(found, is_by_put=False)
            for op_id in page:
                if op_id not in unkept:  # kept by now, or gone
                    self._unkept.pop(op_id, None)

    async def _release(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            await self._blocks.release(claim)

    async def _all_claims(self) -> list[Claim]:
        roots = await all_roots(self._blocks)
        return [claim for status in roots for claim in await self._blocks.claims(status.root)]

    def _note_unkept(self, entry: Entry, reason: str) -> None:
        if entry.op_id in self._unkept:
            return
        logger.debug("a blob of publisher %s is not kept: %s", short(entry.publisher), reason)
        self._unkept[entry.op_id] = None
        if len(self._unkept) > MAX_UNKEPT:
            del self._unkept[next(iter(self._unkept))]


async def all_roots(blocks: BlockStore) -> list[RootStatus]:
    """Every root that is claimed, in the order of their bytes."""
    found: list[RootStatus] = []
    while page := await blocks.roots(after=found[-1].root if found else None):
        found += page
    return found


def refers_to_blob(entry: Entry) -> bool:
    """Whether the value of an entry is a blob."""
    return isinstance(entry.header.content, BlobRef)


def root_of(entry: Entry) -> Cid | None:
    """The root of the blob that an entry refers to; ``None`` if it refers to none, or to nothing that could be one."""
    if not isinstance(entry.header.content, BlobRef):
        return None
    try:
        return Cid.from_bytes(entry.header.content.cid)
    except ValidationError:
        return None


def _kept_blob(entry: Entry, now_us: int, *, is_by_put: bool) -> KeptBlob | None:
    """What a live entry refers to.

    Raises:
        ValidationError: its CID is none.
    """
    header = entry.header
    if not isinstance(header.content, BlobRef) or not entry.is_live(now_us):
        return None
    return KeptBlob(
        op_id=entry.op_id,
        root=Cid.from_bytes(header.content.cid),
        size=header.content.size,
        key=header.key,
        publisher=entry.publisher,
        created_at_us=header.created_at_us,
        is_by_put=is_by_put,
        since_s=trio.current_time(),
    )


def _is_for_entry(claim: Claim) -> bool:
    return bool(claim.owner) and len(claim.label) == OP_ID_BYTES
