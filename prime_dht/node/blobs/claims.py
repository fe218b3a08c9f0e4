"""Which blobs this node keeps for entries: a claim in the block store for each entry that it stores and that needs one.

An entry's claim is on the account of its publisher and labelled with its op id. It is taken *before* the entry enters
the store, so whatever is stored is claimed, also after a crash; that is also when limits are held against it. A put of
an entry whose blob this node would not fetch is refused, and its writer hears why. What sync brings is stored all the
same, without its blob: otherwise blobs that nobody can keep would keep replicas from being equal. So is that for whose
blob there turns out to be no room when it comes (:meth:`BlobClaims.give_up`), of which the writer hears that this
replica does not hold it. The latest of these are tried again in sweeps, for there may be room by then.

What claims are for entries that left, or never came, or have expired, comes out when the entry store is asked, which is
done in every *sweep*: no other book is kept. A claim taken a moment ago is left alone, for its entry is on its way, and
so is that of an entry that is being put (:meth:`BlobClaims.putting`). Claims are taken and released one at a time.

An entry store may have outlived its blocks, which lay in memory or were deleted. When no claims are found at start, all
entries are gone through; and when the store notes that there are entries without their blobs, of which nobody else
would know after a restart, though there may be more room by then, or other limits.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import trio

from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.entries.limits import Limits
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs, short
from prime_dht.node.blobs.accounts import Accounts
from prime_dht.node.clock import Clock
from prime_dht.storage.base import OP_ID_BYTES, StorageBackend
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_status import ARE_UNKEPT, NoRoomError, RootStatus

logger = logging.getLogger(__name__)

PIN = b"pin"
"""The label of what this node's user wants kept."""

PUT = b"put:"
"""The label of what a put keeps until replicas hold it, with the time at which its entry ends at the latest, in
microseconds, 8 bytes, big-endian, and the SHA-256 of its key. (Versions before 0.4.0 left the key out.)"""

UNTIL_BYTES = 8

ENTRIES_IN_PAGE = 100
OPS_IN_PAGE = 16_384
FRESH_S = 60.0
"""How long a claim is left alone whose entry is not there: none takes so long to be stored."""

FOUND_S = 1.0
"""How long what was here of a blob when it was claimed is taken for what is here: others may bring it as well."""

GIVEN_UP_S = 3600.0
"""How long a blob is done without for which there was no room when it came: part of it came in vain."""

MAX_UNKEPT = 1000
"""Entries without their blobs that are remembered: to try them again, and to say only once why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptBlob:
    """A blob that an entry refers to.

    Attributes:
        size: that the entry says; or that it has, if it is here and the entry says less.
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
        self._unkept: dict[OpId, float] = {}  # and when they are tried again
        self._are_unkept_noted = False
        self._new: dict[OpId, KeptBlob] = {}
        self._found: dict[Cid, RootStatus] = {}  # what was here of roots when they were claimed last
        self._claimed: Counter[Cid] = Counter()  # by how much that is kept
        self._putting: Counter[OpId] = Counter()
        self._turn = trio.Lock()  # to take a claim, or release one
        self._accounts = Accounts()  # of what is kept
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
                if blob is not None:
                    await self._claim(blob)
            except (NoRoomError, ValidationError) as error:
                unkept[entry.op_id] = str(error)
                self._note_unkept(entry.op_id, entry.publisher, str(error))
        if unkept and not is_by_put:
            await self._note_that_some_are_unkept()
        return unkept

    @contextmanager
    def putting(self, entries: Sequence[Entry]) -> Iterator[None]:
        """These entries are being put. Until that has ended, another put cannot know that one is not stored."""
        op_ids = [entry.op_id for entry in entries if refers_to_blob(entry)]
        self._putting.update(op_ids)
        try:
            yield
        finally:
            self._putting.subtract(op_ids)
            for op_id in op_ids:
                if not self._putting[op_id]:
                    del self._putting[op_id]

    async def unclaim(self, op_ids: Iterable[OpId]) -> None:
        """These entries were not stored after all, or have left the store; unless another put has them, or brings them.

        Raises:
            StorageError: a store failed; the next sweep does it.
        """
        await self._release_gone([blob for op_id in op_ids if (blob := self.kept.get(op_id)) is not None])

    async def give_up(self, root: Cid, reason: str) -> None:
        """There is no room for a blob: the entries that refer to it stay without it for an hour, and are tried again.

        Raises:
            StorageError: the block store failed.
        """
        await self._note_that_some_are_unkept()
        for blob in [blob for blob in self.kept.values() if blob.root == root]:
            await self._release(blob)
            self._note_unkept(blob.op_id, blob.publisher, reason, again_s=trio.current_time() + GIVEN_UP_S)

    def came(self, root: Cid, size: int) -> None:
        """A blob is here, and has so many bytes: whoever said that it has fewer is charged these."""
        raised = [blob for blob in self.kept.values() if blob.root == root and blob.size < size]
        self.kept |= {blob.op_id: replace(blob, size=size) for blob in raised}
        for publisher in {blob.publisher for blob in raised}:
            self._accounts.raise_to(publisher, root, size)

    def take_new(self) -> list[KeptBlob]:
        """What was added since this was called last."""
        new, self._new = self._new, {}
        return list(new.values())

    def found(self, blob: KeptBlob) -> RootStatus | None:
        """What was here of a blob when it was claimed a moment ago. Told once, and not after a claim was released."""
        status = self._found.pop(blob.root, None)
        return status if trio.current_time() < blob.since_s + FOUND_S else None

    def keeps(self, root: Cid) -> bool:
        """Whether a blob is claimed for an entry; nor is it let go of before :meth:`sweep` has told."""
        return root in self._claimed

    async def load(self) -> None:
        """Read the claims that the block store has; and all entries, if there are none, or some may lack theirs.

        Of those that were read, what is here whole is not among what :meth:`take_new` tells.
        """
        roots = await all_roots(self._blocks)
        claims = [claim for status in roots for claim in await self._blocks.claims(status.root)]
        op_ids = [OpId(claim.label) for claim in claims if _is_for_entry(claim)]
        await self._take_in(op_ids)
        self._are_unkept_noted = bool(await self._storage.get_meta(ARE_UNKEPT))
        if not claims or self._are_unkept_noted:
            await self._take_in_all()
        for claim in claims:
            if _is_for_entry(claim):
                await self._release_unknown(claim)
            elif claim.label.startswith(PUT) and claim not in self._puts:
                self._left.add(claim)
                self._puts[claim] = int.from_bytes(claim.label.removeprefix(PUT)[:UNTIL_BYTES], "big")
        self._found.clear()  # most are here whole, and nobody asks for them
        whole = {status.root for status in roots if status.is_complete}
        self._new = {op_id: blob for op_id, blob in self._new.items() if blob.is_by_put or blob.root not in whole}
        self.changed.set()

    async def sweep(self) -> list[Cid]:
        """Release claims whose entries are no longer there, or have expired.

        Returns:
            the roots of all claims that were released since this was called last.
        """
        await self._take_in([op_id for op_id, again_s in self._unkept.items() if again_s <= trio.current_time()])
        now_us, now_s = self._clock.now_us(), trio.current_time()
        await self._release_gone([blob for blob in self.kept.values() if now_s >= blob.since_s + FRESH_S])
        for put in [put for put, until_us in self._puts.items() if until_us <= now_us]:
            await self.put_done(put)
        released, self._released = self._released, []
        return released

    def put_claim(self, root: Cid, until_us: int, key: Key) -> Claim:
        """What a put under a key is to claim its blob with; released by :meth:`put_done`, or when its entry ends.

        Each put has one of its own: of two of the same, which end together, one may fail. So this one's may say that it
        ends some microseconds later.
        """
        said_us = until_us
        while (claim := _put_claim(root, said_us, key)) in self._puts:
            said_us += 1
        self._puts[claim] = until_us
        return claim

    async def put_done(self, claim: Claim) -> None:
        """Nothing more is to be kept for a put: it was given up, or its entry has ended."""
        if claim in self._puts:
            await self._blocks.release(claim)  # first: if it fails, a sweep does it once the entry has ended
            self._puts.pop(claim, None)
            self._left.discard(claim)
            self._released.append(claim.root)

    def has_put(self, claim: Claim) -> bool:
        """Whether something is kept for a put."""
        return claim in self._puts

    def put_left(self, claim: Claim) -> None:
        """Nobody waits any more for replicas to hold what was put. Unless they do, it is kept until its entry ends."""
        if claim in self._puts:
            self._left.add(claim)

    async def put_held(self, claim: Claim) -> None:
        """Enough replicas hold what was put.

        So nothing need be kept either for a put of the same under the same key that nobody waits for, unless its entry
        lives longer. That put was cancelled, or waited in vain, or its process ended. Of another key others are the
        replicas.
        """
        until_us, key = self._puts.get(claim, 0), _key_in(claim)
        left = [
            each
            for each in self._left
            if each.root == claim.root and _key_in(each) == key and self._puts[each] <= until_us
        ]
        for put in (claim, *left):
            await self.put_done(put)

    async def _claim(self, blob: KeptBlob) -> None:
        async with self._turn:
            if (known := self.kept.get(blob.op_id)) is not None:
                self.kept[blob.op_id] = replace(known, since_s=blob.since_s)
                return

            def check(status: RootStatus | None) -> None:  # not called if it was before a start
                size = _size_of(blob, status)
                self._limits.check_blobs(self._accounts.bytes_with(blob.publisher, blob.root, size))

            status = await self._blocks.claim(blob.claim, size_bytes=blob.size, check=check)
            blob = replace(blob, size=_size_of(blob, status))
            self.kept[blob.op_id] = self._new[blob.op_id] = blob
            self._found[blob.root] = status
            self._claimed[blob.root] += 1
            self._accounts.add(blob.publisher, blob.root, blob.size)
            self.changed.set()

    async def _release_gone(self, blobs: Sequence[KeptBlob]) -> None:
        """Release the claims of those whose entries are not in the store, or not live, and nobody puts."""
        for start in range(0, len(blobs), ENTRIES_IN_PAGE):
            page = [blob for blob in blobs[start : start + ENTRIES_IN_PAGE] if blob.op_id not in self._putting]
            now_us = self._clock.now_us()
            found = await self._storage.get_ops([blob.op_id for blob in page], now_us=now_us) if page else []
            live = {entry.op_id for entry in found if entry.is_live(now_us)}
            for blob in page:
                if blob.op_id not in live:
                    await self._release(blob)

    async def _release(self, blob: KeptBlob) -> None:
        """Release a claim, unless it was taken anew since this was looked up."""
        async with self._turn:
            if self.kept.get(blob.op_id) is blob and blob.op_id not in self._putting:
                await self._blocks.release(blob.claim)
                size = self.kept.pop(blob.op_id).size  # what has come meanwhile may have more than it said
                self._claimed[blob.root] -= 1
                if not self._claimed[blob.root]:
                    del self._claimed[blob.root]
                self._found.pop(blob.root, None)  # if nobody else claims it, the next that do have another root
                self._accounts.remove(blob.publisher, blob.root, size)
                self._released.append(blob.root)

    async def _release_unknown(self, claim: Claim) -> None:
        """Release a claim that was found in the block store, unless it is kept, or is being taken anew just now."""
        if OpId(claim.label) in self.kept:
            return
        async with self._turn:
            if OpId(claim.label) not in self.kept:
                await self._blocks.release(claim)

    async def _take_in(self, op_ids: Sequence[OpId], *, is_noted: bool = False) -> None:
        """Claim what the live ones among these entries refer to.

        Args:
            is_noted: note first, if any does, that there may be others without their claims.
        """
        now_us = self._clock.now_us()
        for start in range(0, len(op_ids), ENTRIES_IN_PAGE):
            page = op_ids[start : start + ENTRIES_IN_PAGE]
            found = await self._storage.get_ops(page, now_us=now_us)
            if is_noted and any(map(refers_to_blob, found)):
                await self._note_that_some_are_unkept()
            unkept = await self.claim(found, is_by_put=False)
            for op_id in page:
                if op_id not in unkept:  # kept by now, or gone
                    self._unkept.pop(op_id, None)

    async def _take_in_all(self) -> None:
        """Claim what all live entries refer to; should this end half way, it is done at the next start."""
        cursor = b""
        while True:
            page = await self._storage.scan_ops(after=cursor, limit=OPS_IN_PAGE)
            ids = page.op_ids.tobytes()
            op_ids = [OpId(ids[at : at + OP_ID_BYTES]) for at in range(0, len(ids), OP_ID_BYTES)]
            await self._take_in(op_ids, is_noted=True)
            if not (cursor := page.next_cursor):
                break
        if self._are_unkept_noted and not self._unkept:
            self._are_unkept_noted = False  # first: one that comes meanwhile is noted after this
            await self._storage.put_meta(ARE_UNKEPT, b"")

    async def _note_that_some_are_unkept(self) -> None:
        if not self._are_unkept_noted:
            await self._storage.put_meta(ARE_UNKEPT, b"1")
            self._are_unkept_noted = True

    def _note_unkept(self, op_id: OpId, publisher: PeerId, reason: str, *, again_s: float = -math.inf) -> None:
        if op_id in self._unkept:
            return
        logger.debug("a blob of publisher %s is not kept: %s", short(publisher), reason)
        self._unkept[op_id] = again_s
        if len(self._unkept) > MAX_UNKEPT:
            del self._unkept[next(iter(self._unkept))]


async def all_roots(blocks: BlockStore, *, is_partial: bool = False) -> list[RootStatus]:
    """Every root that is claimed, or every partial one, in the order of their bytes."""
    found: list[RootStatus] = []
    while page := await blocks.roots(after=found[-1].root if found else None, is_partial=is_partial):
        found += page
    return found


def _size_of(blob: KeptBlob, status: RootStatus | None) -> int:
    """What a blob counts for: what its entry says; or what it has, if it is here and the entry says less."""
    return blob.size if status is None or not status.is_complete else max(blob.size, status.size_bytes)


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


def _put_claim(root: Cid, until_us: int, key: Key) -> Claim:
    return Claim(root=root, label=PUT + until_us.to_bytes(UNTIL_BYTES, "big") + hashlib.sha256(key).digest())


def _key_in(put: Claim) -> bytes:
    """Under which key a put is, as far as its claim says."""
    return put.label.removeprefix(PUT)[UNTIL_BYTES:]
