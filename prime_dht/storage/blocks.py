"""The block store: the blocks a node has, why it keeps them, and what it may forget.

- A *block* is kept by the SHA-256 of its bytes, its digest, once, however many roots use it.
- A *root* is the top of a blob's DAG, or a single block. Whoever brings blocks says for which root, and the root *uses*
  them from then on. It is *partial* until the caller says that it is complete; a fetch that was broken off goes on by
  :meth:`BlockStore.adopt`, which tells what is there. A *draft* is a root whose CID is not known yet.
- A *claim* is why a root is kept: an *owner*, a publisher's peer id or nothing for this node's own user, and a *label*,
  such as the op id of the entry that refers to the root.
- *Garbage* is what no claimed root and no draft uses. What is being written belongs to one of them, so collecting needs
  no grace.

What is promised:

- **Whole or not at all.** A call that fails or is cancelled has done all of its work or none. A full disk is a
  :class:`StorageError`, a full store a :class:`NoRoomError`, and what was there stays as it was.
- **The death of the process** loses nothing that was added.
- **A loss of power** loses nothing of a root that was said to be complete before. Blocks are brought to the disk many
  at a time. Those that were not, about :data:`UNSYNCED_BYTES` at most, are checked by their digests when the store is
  opened next.
- **After either** the files and the index are made to agree when the store is opened next
  (:mod:`prime_dht.storage.blocks_recovery`). That reads the names of all files, two seconds for a million; a store that
  was closed opens at once.
- **A damaged block is never taken for a whole one** where verification is asked for. It is forgotten when that finds
  it, as is one whose file is gone or cannot be read, and the roots that use it are partial again. If the rest of such a
  root is being brought, it is not complete before those have come again. A disk that takes no writes makes the store
  forget nothing.
- **Bounded.** The bytes of all blocks stay within ``max_bytes``; nothing but garbage goes to make room.

Nobody's bytes are checked by :meth:`BlockStore.add`: a block is verified where it enters the node, once.

The index is :mod:`prime_dht.storage.blocks_index`, the bytes are :mod:`prime_dht.storage.blocks_files`. Changes take
turns on a worker thread, in the order of the calls; reads of bytes do not wait for them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio
from trio.abc import AsyncResource

from prime_dht.blobs.cid import Cid
from prime_dht.durability import make_directory
from prime_dht.errors import StorageError
from prime_dht.storage.blocks_files import BlockFiles, Data, DiskFiles, MemoryFiles, holds_blocks
from prime_dht.storage.blocks_index import IN_MEMORY, BlockIndex, LostBlocksError, RootRow
from prime_dht.storage.blocks_recovery import read_block, recover
from prime_dht.storage.blocks_status import BlockStats, Collected, NoRoomError, RootStatus, status_of
from prime_dht.storage.blocks_syncing import Finishes, Unsynced
from prime_dht.storage.sqlite_file import lock, translation

T = TypeVar("T")

UNSYNCED_BYTES = 256 << 20
"""Bytes of blocks that may not be safe from a loss of power; beyond, whoever adds waits for the disk."""

SYNC_FROM_BYTES = 64 << 20
"""From here on they are brought to the disk, while others may go on adding."""

READERS = 4
"""Threads that read blocks at the same time."""

INDEX_FILE = "index.sqlite3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Why a root is kept.

    Attributes:
        owner: the publisher for whom it is, as peer id bytes; empty for this node's own user.
        label: what tells the owner's claims on a root apart, such as the op id of an entry; opaque.
    """

    root: Cid
    owner: bytes = b""
    label: bytes = b""


@dataclass(slots=True, eq=False)
class Draft:
    """A root whose CID is not known yet; :meth:`BlockStore.draft` makes one.

    Attributes:
        id: of the root, once it has a block and until it is settled.
    """

    id: int | None = None


class BlockStore(AsyncResource):
    """See the module. :meth:`open` and :meth:`in_memory` make one; every method may raise :class:`StorageError`."""

    def __init__(self, index: BlockIndex | None, files: BlockFiles, *, place: Path, max_bytes: int) -> None:
        self._made_index = index
        self._files = files
        self._place = place  # for messages
        self.max_bytes = max_bytes
        self._resources = contextlib.ExitStack()
        self._changes = trio.CapacityLimiter(1)
        self._readers = trio.CapacityLimiter(READERS)
        self._unsynced = Unsynced()
        self._finishes = Finishes(
            lambda: self._index, files, self._unsynced, forget=self._forget_missing, change=self._run, read=self._read
        )
        self._is_immediate = isinstance(files, MemoryFiles)  # then no work takes long enough for a thread
        self._has_leftovers = False
        self._is_open = True
        self._blocks = self._bytes = 0
        if index is not None:
            with index.transaction():
                self._blocks, self._bytes = index.taken()
                self._unsynced.add(index.unsynced())

    @classmethod
    async def open(cls, directory: Path, *, max_bytes: int) -> BlockStore:
        """Open the store in a directory, or make one there.

        Raises:
            StorageError: another process has it open, it cannot be written, is damaged, or of another version; or there
                are blocks and no index of them.
        """

        def open_it() -> BlockStore:
            with translation(directory), contextlib.ExitStack() as resources:
                make_directory(directory)
                lock(directory / INDEX_FILE, resources)
                index = BlockIndex(str(directory / INDEX_FILE), has_blocks=holds_blocks(directory))
                resources.callback(index.close)
                files = DiskFiles(directory)
                is_tidy = recover(index, files)
                store = cls(index, files, place=directory, max_bytes=max_bytes)
                store._has_leftovers = not is_tidy
                store._resources = resources.pop_all()
                return store

        return await trio.to_thread.run_sync(open_it)

    @classmethod
    def in_memory(cls, *, max_bytes: int) -> BlockStore:
        """A store that ends with its process, for a node without a data directory. It need not be closed.

        Its index is made when it is first asked for a root, or to keep one: SQLite takes 70 kB, and most such nodes
        never have to do with a blob.
        """
        return cls(None, MemoryFiles(), place=Path("blocks in memory"), max_bytes=max_bytes)

    @property
    def _index(self) -> BlockIndex:
        if self._made_index is None:
            self._check_open()
            self._made_index = BlockIndex(IN_MEMORY)
            self._resources.callback(self._made_index.close)
        return self._made_index

    # Roots and claims

    async def claim(
        self,
        claim: Claim,
        *,
        size_bytes: int,
        check: Callable[[RootStatus | None], None] | None = None,
        is_synced: bool = False,
    ) -> RootStatus:
        """Keep a root, whether anything of it is there or not. The same claim again changes nothing.

        Args:
            size_bytes: of all its blocks; counts only if nobody has claimed the root before.
            check: is given what there is of the root, unless the claim is there already; nothing is changed if it
                raises. It is called on a worker thread.
            is_synced: the claim survives a loss of power when this returns.

        Raises:
            NoRoomError: that is more than the store could take beside what is reserved for other partial roots: as much
                again as has come of each, or all that it still lacks if this node's own user claims it. So whoever
                declares much, and brings nothing, keeps nobody out; :meth:`add` may find no room later.
        """
        cid = bytes(claim.root)

        def change() -> RootStatus:
            row = self._index.root(cid)
            if check is not None and not (row and self._index.has_claim(row.id, claim.owner, claim.label)):
                check(None if row is None else status_of(row))
            if row is None:
                self._check_room(size_bytes, self._index.reserved_bytes())
            self._index.claim(cid, claim.owner, claim.label, size_bytes)
            return status_of(row or self._claimed(claim.root))

        return await self._making_room(lambda: self._change(change, is_synced=is_synced))

    async def release(self, claim: Claim) -> None:
        """Take a claim back. A root without claims is gone, and what it alone used is garbage."""
        await self._change(lambda: self._index.release(bytes(claim.root), claim.owner, claim.label))

    async def claims(self, root: Cid) -> list[Claim]:
        """Why a root is kept, in the order of owners and labels; nothing if it is not."""
        rows = await self._change(lambda: self._index.claims(bytes(root)))
        return [Claim(root=root, owner=owner, label=label) for owner, label in rows]

    async def status(self, root: Cid) -> RootStatus | None:
        """How much of a root is there; ``None`` if nobody claims it."""
        row = await self._change(lambda: self._index.root(bytes(root)))
        return None if row is None else status_of(row)

    async def roots(self, *, after: Cid | None = None, limit: int = 1000, is_partial: bool = False) -> list[RootStatus]:
        """The next ``limit`` roots, or partial roots, in the order of their bytes, starting behind ``after``."""
        if await self._is_blank():
            return []
        begin = bytes(after) if after else b""
        rows = await self._change(lambda: self._index.roots(begin, limit, is_partial=is_partial))
        return [status_of(row) for row in rows]

    async def held(self, roots: Iterable[Cid]) -> set[Cid]:
        """Those of these roots that are claimed and complete."""
        asked = {bytes(root): root for root in roots}
        return {asked[cid] for cid in await self._change(lambda: self._index.held(list(asked)))}

    async def complete(
        self, root: Cid, *, since: RootStatus | None = None, size_bytes: int | None = None
    ) -> RootStatus:
        """All blocks of a root are there; when this returns, a loss of power takes none of them.

        Args:
            since: what the store said of the root before the first of them was adopted or added.
            size_bytes: what they turned out to have, if that was not known when the root was claimed.

        Raises:
            LostBlocksError: blocks that were there have been forgotten meanwhile; or since then nobody claimed the root
                for a while. It is partial until they are adopted or brought again.
            StorageError: nobody claims the root.
        """

        def change() -> RootStatus:
            row = self._claimed(root)
            if since is not None and since.id != row.id:
                raise LostBlocksError(f"root {root}: it was let go of while its blocks were brought")
            self._index.complete(row.id, size_bytes)
            return status_of(self._claimed(root))

        self._check_open()
        return await self._finishes.run(change)

    @contextlib.asynccontextmanager
    async def draft(self) -> AsyncIterator[Draft]:
        """A root whose CID comes out at the end. If it is not settled by then, its blocks are garbage."""
        self._check_open()
        draft = Draft()
        try:
            await trio.lowlevel.checkpoint()
            yield draft
        finally:
            if draft.id is not None and self._is_open:  # else whoever closes the store does it, or opens it next
                with trio.CancelScope(shield=True):
                    await self._change(lambda: self._index.drop_draft(draft.id))

    async def settle(self, draft: Draft, claim: Claim, *, size_bytes: int) -> None:
        """A draft is the complete root ``claim.root``, and claimed. Takes the place of such a root, if there is one.

        When this returns, a loss of power takes none of its blocks.

        Raises:
            LostBlocksError: blocks of the draft have been forgotten meanwhile; nothing is changed.
        """
        cid = bytes(claim.root)

        def change() -> None:
            self._index.settle(self._root_id(draft), cid, size_bytes)
            self._index.claim(cid, claim.owner, claim.label, size_bytes)

        self._check_open()
        await self._finishes.run(change)
        draft.id = None

    # Blocks

    async def add(self, root: Cid | Draft, blocks: Sequence[tuple[Cid, Data]]) -> None:
        """Store verified blocks, which a root uses from now on. Those that are there already are not written again.

        They survive the death of the process when this returns.

        Raises:
            NoRoomError: there is no room for all of them; none is stored.
            StorageError: the disk is full, or fails, or nobody claims the root; none is stored.
        """
        wanted = {cid.digest: data for cid, data in blocks}

        def add() -> None:
            new: dict[bytes, int] = {}  # their sizes
            try:
                with self._using(root) as root_id:
                    present = self._index.present(list(wanted))
                    new |= {digest: len(data) for digest, data in wanted.items() if digest not in present}
                    self._check_room(sum(new.values()))
                    self._index.add(new)
                    self._index.use(root_id, wanted)
                    for digest in new:
                        self._files.write(digest, wanted[digest])
            except BaseException:  # whatever it is, what this call wrote goes
                self._remove(new)
                raise
            self._count(len(new), sum(new.values()))
            self._unsynced.add(new)

        await self._making_room(lambda: self._in_thread(add))
        enough_bytes = UNSYNCED_BYTES if self._finishes.is_under_way else SYNC_FROM_BYTES
        if self._unsynced.bytes >= enough_bytes and self._is_open:
            await self.sync()  # when it is closed, whoever closes it does that

    async def adopt(self, root: Cid | Draft, cids: Iterable[Cid]) -> set[Cid]:
        """Let a root use what is there of these blocks; returns which they are. The others have to be brought."""
        asked = list(cids)

        def adopt() -> set[bytes]:
            with self._using(root) as root_id:
                present = self._index.present([cid.digest for cid in asked])
                self._index.use(root_id, present)
                return present

        present = await self._in_thread(adopt)
        return {cid for cid in asked if cid.digest in present}

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        """Which of these blocks are there."""
        asked = list(cids)
        present = await self._change(lambda: self._index.present([cid.digest for cid in asked]))
        return {cid for cid in asked if cid.digest in present}

    async def read(self, cids: Sequence[Cid], *, verify: bool = False) -> list[bytes | None]:
        """The bytes of blocks, in order; ``None`` for those that are not there.

        All of them are in memory at a time, so ask for a few.

        Args:
            verify: check each against its digest. One that is damaged is forgotten, and is not there, as one whose
                file is gone or cannot be read is in any case.
        """

        def read() -> list[bytes | None]:
            return [read_block(self._files, cid.digest, verify=verify) for cid in cids]

        self._check_open()
        found = await self._read(read)
        missing = [cid.digest for cid, data in zip(cids, found, strict=True) if data is None]
        if missing:
            await self._in_thread(lambda: self._forget_missing(missing, verify=verify))
        return found

    async def collect(self, *, limit: int = 1000) -> Collected:
        """Remove garbage: up to ``limit`` blocks, so that other calls need not wait for long. Call again for more."""

        def collect() -> Collected:
            # Else a loss of power might bring back what is removed, as safe, while the same blocks have begun to come.
            with self._index.transaction(is_synced=True):
                ended = self._index.drop_uses(limit)
                doomed = self._index.doom(limit)
            size = sum(doomed.values())
            self._count(-len(doomed), -size)
            self._unsynced.remove(doomed)
            self._remove(doomed)
            return Collected(blocks=len(doomed), bytes=size, is_all=ended < limit and len(doomed) < limit)

        return Collected(blocks=0, bytes=0, is_all=True) if await self._is_blank() else await self._in_thread(collect)

    async def sync(self) -> None:
        """Bring what was added so far to the disk, so that a loss of power takes none of it."""
        self._check_open()
        await self._sync()

    async def stats(self) -> BlockStats:
        await trio.lowlevel.checkpoint()
        return BlockStats(blocks=self._blocks, bytes=self._bytes, max_bytes=self.max_bytes)

    async def aclose(self) -> None:
        """Bring all to the disk and close. Idempotent; calls to other methods raise ``StorageError`` from now on."""
        if not self._is_open:
            await trio.lowlevel.checkpoint()
            return
        self._is_open = False
        with trio.CancelScope(shield=True):
            try:
                await self._run(lambda: None)  # behind the changes that were asked for
                await self._sync()
                if self._made_index is not None:
                    await self._transact(lambda: self._index.end(is_tidy=not self._has_leftovers), is_synced=True)
            finally:
                async with self._changes:
                    self._resources.close()

    async def _sync(self) -> None:
        # No step asks whether the store is open: whoever closes it waits for the syncs that have begun.
        await trio.lowlevel.checkpoint()
        if self._unsynced.bytes or self._finishes.is_under_way:
            await self._finishes.run(lambda: None)

    async def _making_room(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        except NoRoomError:
            if not (await self.collect(limit=sys.maxsize)).blocks:
                raise
            return await work()

    # On worker threads

    def _forget_missing(self, digests: Sequence[bytes], *, verify: bool = True) -> None:
        """Forget those that still cannot be read: in the meantime they may have come."""
        with self._index.transaction(is_synced=True):  # a disk that fails altogether does not take it
            present = self._index.present(digests)
            gone = [digest for digest in present if read_block(self._files, digest, verify=verify) is None]
            sizes = self._index.forget(gone)
        self._count(-len(sizes), -sum(sizes))
        self._unsynced.remove(gone)
        with contextlib.suppress(OSError):  # they are not there, whatever becomes of their files
            self._remove(gone)

    def _remove(self, digests: Iterable[bytes]) -> None:
        """Remove files. Those for which that fails are removed when the store is opened next, as after a crash."""
        try:
            for digest in digests:
                self._files.remove(digest)
        except OSError:
            self._has_leftovers = True
            raise

    def _check_room(self, wanted_bytes: int, reserved_bytes: int = 0) -> None:
        room_bytes = self.max_bytes - self._bytes - reserved_bytes
        if wanted_bytes > room_bytes:
            raise NoRoomError(wanted_bytes, room_bytes, self.max_bytes)

    @contextlib.contextmanager
    def _using(self, root: Cid | Draft) -> Iterator[int]:
        """A transaction in which a root, whose id it gives, comes to use blocks. It makes a draft that has none yet."""
        with self._index.transaction():
            root_id = self._root_id(root)
            yield root_id
        if isinstance(root, Draft):
            root.id = root_id

    def _root_id(self, root: Cid | Draft) -> int:
        if isinstance(root, Draft):
            return self._index.draft() if root.id is None else root.id
        return self._claimed(root).id

    def _claimed(self, root: Cid) -> RootRow:
        row = self._index.root(bytes(root))
        if row is None:
            raise StorageError(f"nobody claims the root {root}")
        return row

    def _count(self, blocks: int, size: int) -> None:
        self._blocks += blocks
        self._bytes += size

    async def _change(self, work: Callable[[], T], *, is_synced: bool = False) -> T:
        """Do ``work`` in a transaction of the index."""
        self._check_open()
        return await self._transact(work, is_synced=is_synced)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._check_open()
        return await self._run(work)

    async def _is_blank(self) -> bool:
        """Whether nothing was ever kept: a store in memory that has not made its index."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        return self._made_index is None

    def _check_open(self) -> None:
        if not self._is_open:
            raise StorageError(f"{self._place}: the store is closed")

    async def _transact(self, work: Callable[[], T], *, is_synced: bool = False) -> T:
        def transact() -> T:
            with self._index.transaction(is_synced=is_synced):
                return work()

        return await self._run(transact)

    async def _read(self, work: Callable[[], T]) -> T:
        """Do ``work`` beside changes of the index."""
        return await self._run(work, limiter=self._readers)

    async def _run(self, work: Callable[[], T], *, limiter: trio.CapacityLimiter | None = None) -> T:
        def translated() -> T:
            with translation(self._place):
                return work()

        if self._is_immediate:
            await trio.lowlevel.checkpoint()
            return translated()
        return await trio.to_thread.run_sync(translated, limiter=limiter or self._changes)
