"""Putting blobs: cut content into blocks, store them here, put the entry, wait until replicas hold what it refers to.

A put's blocks are claimed here until enough replicas hold them, or until the entry ends or is superseded, whatever
becomes of the wait for that (:mod:`prime_dht.node.blobs.left`). Replicas fetch them from this node, which serves blocks
also where it is a client, over the connection that it put the entry on, and from each other.

**Acknowledged** is a put of a blob when ``needed`` replicas have stored the entry and hold the blob: every block, in a
way that survives a loss of power. They are asked for that, time and again (:mod:`prime_dht.node.blobs.keeping`). Once
something else stands in the slot they have no reason to fetch it, so the put ends as superseded.
"""

from __future__ import annotations

import mimetypes
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from prime_dht.background import background_nursery
from prime_dht.blobs.build import BlobBuilder, Block
from prime_dht.blobs.chunking import CHUNKERS, FixedChunker, TensorChunker
from prime_dht.blobs.cid import Cid
from prime_dht.entries.entry import BlobRef
from prime_dht.entries.limits import Limits
from prime_dht.errors import PrimeDHTError, StorageError, ValidationError
from prime_dht.ids import Key, PeerId
from prime_dht.net.network import Network
from prime_dht.node.blobs.claims import BlobClaims
from prime_dht.node.blobs.fetch import OnProgress
from prime_dht.node.blobs.holding import Holders
from prime_dht.node.blobs.keeping import HeldBlocks
from prime_dht.node.blobs.left import LeftPuts
from prime_dht.node.blobs.named import blob_key
from prime_dht.node.blobs.progress import BlobProgress, Stage
from prime_dht.node.results import PutReceipt
from prime_dht.storage.blocks import BlockStore, Claim, Draft

Source = bytes | Path | AsyncIterable[bytes]
"""Content: at hand, in a file, or to come, in pieces; a trio ``ReceiveStream`` is of the last kind."""

Value = Source | BlobRef
"""What an entry says: content, or which blob, of those that the swarm has."""

READ_BYTES = 1 << 20
IN_THREAD_FROM_BYTES = 256 << 10
"""Pieces of so many bytes are cut and hashed by a worker thread; less is hardly worth to hand it over."""

SLICE_BYTES = 128 << 10
"""Of bytes that are at hand."""

TELL_EVERY_S = 0.5
"""While it waits for replicas, a put tells this often how far they are, by what it has sent them."""

LOOK_FIRST_S = 1.0
LOOK_AT_MOST_S = 10.0
"""Between two times that a put which waits for replicas looks whether its entry still stands, ever longer."""


def chunker_for(name: str | None, source: Source) -> str:
    """The chunker that was asked for, or that goes with a source.

    >>> chunker_for(None, Path("model.safetensors")), chunker_for(None, b"")
    ('safetensors-1', 'size-1048576')

    Raises:
        ValidationError: there is none of this name.
    """
    if name is None:
        is_tensors = isinstance(source, Path) and source.suffix == ".safetensors"
        return TensorChunker.name if is_tensors else FixedChunker.name
    if name not in CHUNKERS:
        raise ValidationError(f"there is no chunker {name!r}; there are {' and '.join(CHUNKERS)}")
    return name


def media_type_of(source: Source) -> str:
    """What a file's name says of its content; empty if nothing."""
    return (mimetypes.guess_type(source.name)[0] or "") if isinstance(source, Path) else ""


async def size_of(source: Source) -> int | None:
    """How many bytes a source has, if that can be known.

    Raises:
        StorageError: the file cannot be read.
    """
    if isinstance(source, Path):
        try:
            about = await trio.Path(source).stat()
            return about.st_size if stat.S_ISREG(about.st_mode) else None
        except OSError as error:
            raise StorageError(f"{source}: {error.strerror}") from error
    return len(source) if isinstance(source, bytes | bytearray | memoryview) else None


@asynccontextmanager
async def opened(source: Source) -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of a source, in order; those of bytes and files are at most :data:`READ_BYTES`.

    Raises:
        StorageError: the file cannot be read.
        ValidationError: it is no source.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        pieces = _pieces_of_bytes(bytes(source))
    elif isinstance(source, Path):
        pieces = _pieces_of_file(source)
    elif isinstance(source, AsyncIterable):
        pieces = _pieces_of_reader(source)
    else:
        raise ValidationError(f"a value is bytes, a pathlib.Path or a reader of bytes, not {type(source).__name__}")
    async with aclosing(pieces):
        yield pieces


async def read_ahead(pieces: AsyncIterator[bytes], limit: int) -> tuple[bytes, bool]:
    """The beginning of a source: all of it if that is at most ``limit`` bytes, and whether it is."""
    head = bytearray()
    async for piece in pieces:
        head += piece
        if len(head) > limit:
            return bytes(head), False
    return bytes(head), True


async def chained(head: bytes, pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The pieces of a source whose beginning was read."""
    yield head
    async for piece in pieces:
        yield piece


async def _pieces_of_bytes(value: bytes) -> AsyncGenerator[bytes]:
    for start in range(0, len(value), SLICE_BYTES):
        yield value[start : start + SLICE_BYTES]


async def _pieces_of_file(path: Path) -> AsyncGenerator[bytes]:
    try:
        is_plain = stat.S_ISREG((await trio.Path(path).stat()).st_mode)
        # A pipe may keep its reader waiting for ever, who must be able to give up.
        # The threads that are left behind then take no place from others.
        in_thread = partial(
            trio.to_thread.run_sync,
            abandon_on_cancel=not is_plain,  # type: ignore[call-arg]  # old stubs
            limiter=None if is_plain else trio.CapacityLimiter(1),
        )
        with await in_thread(lambda: path.open("rb", buffering=0)) as file:
            while piece := await in_thread(lambda: file.read(READ_BYTES)):
                yield piece
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error


async def _pieces_of_reader(reader: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    async with AsyncExitStack() as stack:
        if isinstance(reader, AsyncGenerator):  # which nobody else may be able to close
            await stack.enter_async_context(aclosing(reader))
        async for piece in reader:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise ValidationError(f"a reader gives bytes, not {type(piece).__name__}")
            yield bytes(piece)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A blob whose blocks replicas can have: from the block store here, under a claim of its put, or from others."""

    ref: BlobRef
    claim: Claim | None

    @property
    def root(self) -> Cid:
        return Cid.from_bytes(self.ref.cid)


class BlobWriter:
    """Stores blobs here, and waits for replicas to hold them."""

    def __init__(
        self,
        network: Network,
        blocks: BlockStore,
        held: HeldBlocks,
        claims: BlobClaims,
        left: LeftPuts,
        limits: Limits,
    ) -> None:
        self._network = network
        self._blocks = blocks
        self._held = held
        self._holders = Holders(network)
        self._claims = claims
        self._left = left
        self._limits = limits

    async def store(
        self,
        pieces: AsyncIterator[bytes],
        chunker: str,
        *,
        key: Key | None,
        until_us: int,
        size: int | None,
        progress: OnProgress | None,
    ) -> Stored:
        """Cut content into blocks and store them.

        Args:
            key: under which they are put; ``None`` for that of a bare ``add``.
            until_us: when they may go, if nobody is done with them before.
            size: of the content, in bytes, if it is known; checked before anything is read.

        Raises:
            ValidationError: it has more bytes than a blob may have.
            StorageError: the disk is full, or fails; NoRoomError: the block store is.
        """
        self._check_size(size or 0)
        builder = BlobBuilder(CHUNKERS[chunker]())
        began_at_s = trio.current_time()
        async with self._blocks.draft() as draft:
            async for piece in pieces:
                self._check_size(builder.size + len(piece))
                await self._add(draft, await _fed(builder, piece))
                if progress is not None:
                    elapsed_s = trio.current_time() - began_at_s
                    progress(
                        BlobProgress(
                            stage=Stage.STORING, cid=None, size_bytes=size, done_bytes=builder.size, elapsed_s=elapsed_s
                        )
                    )
            await self._add(draft, builder.finish())
            assert builder.root is not None
            claim = self._claims.put_claim(builder.root, until_us, key or blob_key(builder.root))
            stored = Stored(ref=BlobRef(bytes(builder.root), builder.size, chunker), claim=claim)
            async with self.given_up_if_it_fails(stored):
                await self._blocks.settle(draft, claim, size_bytes=builder.size)
        return stored

    async def spread(
        self, stored: Stored, receipt: PutReceipt, *, wait_s: float, progress: OnProgress | None
    ) -> PutReceipt:
        """Wait until enough of those that stored an entry hold its blob; returns the receipt with those that do.

        It ends earlier, as superseded, once another blob, or none, stands in the entry's slot.

        Args:
            wait_s: how long at most; 0 does not wait at all.
        """
        wanted = min(receipt.needed, len(receipt.stored_by))
        held_by: list[PeerId] = [peer for peer in receipt.stored_by if peer == self._network.local]
        began_at_s, began_with_bytes = trio.current_time(), self._held.served_bytes
        changed = trio.Event()
        waiting, is_superseded = trio.move_on_after(wait_s), False
        if stored.claim is not None:
            self._left.follow(stored.claim, receipt, stored.ref)

        def tell() -> None:
            if progress is not None:
                size = stored.ref.size
                sent_bytes = min(self._held.served_bytes - began_with_bytes, size * wanted)
                done_bytes = max(sent_bytes, size * min(len(held_by), wanted)) // max(wanted, 1)
                progress(
                    BlobProgress(
                        stage=Stage.SPREADING,
                        cid=stored.root,
                        size_bytes=size,
                        done_bytes=done_bytes,
                        elapsed_s=trio.current_time() - began_at_s,
                        replicas_held=len(held_by),
                        replicas_wanted=wanted,
                    )
                )

        async def ask(peer: PeerId) -> None:
            await self._holders.wait_for(peer, stored.root)
            held_by.append(peer)
            changed.set()

        async def end_when_superseded() -> None:
            nonlocal is_superseded
            await self._until_superseded(receipt, stored.ref)
            is_superseded = True
            waiting.cancel()

        with waiting:
            async with background_nursery() as nursery:  # so that what ``progress`` raises is in no group
                nursery.start_soon(end_when_superseded)
                for peer in receipt.stored_by:
                    if peer != self._network.local:
                        nursery.start_soon(ask, peer)
                tell()
                while len(held_by) < wanted:
                    with trio.move_on_after(TELL_EVERY_S):
                        await changed.wait()
                    changed = trio.Event()
                    tell()
        superseded = receipt.superseded or is_superseded
        receipt = replace(receipt, blob=stored.ref, held_by=tuple(held_by), superseded=superseded)
        if stored.claim is not None:
            with suppress(StorageError):  # a sweep does it when the entry would end
                if receipt.acknowledged:
                    await self._claims.put_held(stored.claim)
                elif is_superseded:
                    await self._claims.put_done(stored.claim)
        return receipt

    async def _until_superseded(self, receipt: PutReceipt, ref: BlobRef) -> None:
        pause_s = LOOK_FIRST_S
        await trio.sleep(pause_s)
        while not await self._left.is_superseded(receipt, ref):
            pause_s = min(2 * pause_s, LOOK_AT_MOST_S)
            await trio.sleep(pause_s)

    @contextmanager
    def left_at_the_end(self, stored: Stored) -> Iterator[None]:
        """Put an entry that refers to a blob, and wait for replicas to hold that; afterwards nobody waits for it."""
        try:
            yield
        finally:
            if stored.claim is not None:
                self._claims.put_left(stored.claim)

    @asynccontextmanager
    async def given_up_if_it_fails(self, stored: Stored) -> AsyncIterator[Callable[[], None]]:
        """Do what a put does with a blob: if that fails, or no replica takes its entry, its blocks need not stay here.

        They stay if the put is cancelled, or ends in any other way, once the entry goes out: a replica may have it by
        then. The block calls what it is given before that.
        """
        is_out = False

        def leaves() -> None:
            nonlocal is_out
            is_out = True

        try:
            yield leaves
        except BaseException as error:
            if stored.claim is not None and (isinstance(error, PrimeDHTError) or not is_out):
                with trio.CancelScope(shield=True), suppress(StorageError):  # a sweep does it when the entry would end
                    await self._claims.put_done(stored.claim)
            raise

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_blob_bytes:
            raise ValidationError(f"blob: {size:,} bytes; the limit is {self._limits.max_blob_bytes:,} bytes")

    async def _add(self, draft: Draft, blocks: list[Block]) -> None:
        if blocks:
            await self._blocks.add(draft, [(block.cid, block.data) for block in blocks])


async def _fed(builder: BlobBuilder, piece: bytes) -> list[Block]:
    if len(piece) < IN_THREAD_FROM_BYTES:
        return builder.feed(piece)
    return await trio.to_thread.run_sync(builder.feed, piece)
