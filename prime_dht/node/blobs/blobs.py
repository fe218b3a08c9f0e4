"""What a node offers its owner for blobs: ``dht.blobs``, and what ``put`` and ``get`` do with values that are blobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import trio

from prime_dht.background import background_nursery
from prime_dht.blobs.cid import Cid, Codec
from prime_dht.blobs.unixfs import MAX_BLOCK_BYTES
from prime_dht.config import DhtConfig
from prime_dht.entries.codec import YEAR_10000_US
from prime_dht.entries.entry import BlobRef, Entry
from prime_dht.errors import BlobError, PrimeDHTError, ValidationError
from prime_dht.ids import US_PER_S, Key, PeerId
from prime_dht.node.arguments import PathLike, path_of
from prime_dht.node.blobs.claims import PIN, all_roots
from prime_dht.node.blobs.fetch import Fetcher, OnProgress
from prime_dht.node.blobs.file import FileDestination, place_of, write_small
from prime_dht.node.blobs.keeping import Keeping
from prime_dht.node.blobs.named import CidLike, blob_key, cid_of, name_of, part_of, size_in
from prime_dht.node.blobs.pinning import Pins
from prime_dht.node.blobs.progress import BlobProgress, ToldProgress
from prime_dht.node.blobs.putting import (
    BlobWriter,
    Source,
    Stored,
    Value,
    chained,
    chunker_for,
    media_type_of,
    opened,
    read_ahead,
    size_of,
)
from prime_dht.node.blobs.window import Window
from prime_dht.node.clock import Clock
from prime_dht.node.results import Found, PutReceipt
from prime_dht.node.writer import Statement, Writer
from prime_dht.quantities import number_of
from prime_dht.storage.base import StorageBackend
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.storage.blocks_status import RootStatus
from prime_dht.storage.blocks_survey import op_ids_of

NAME = "name"
"""The metadata of an entry under which the name of a file stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """An entry for whose sake a blob is kept."""

    key: Key
    publisher: PeerId
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobStatus:
    """A blob that a node keeps, or is fetching to keep.

    Attributes:
        size_bytes: of its content.
        present_bytes: of its blocks, those that are here.
        is_complete: whether all of them are.
        is_pinned: whether this node's user wants it kept.
        references: the entries that refer to it, as far as this node stores them.
    """

    cid: Cid
    size_bytes: int
    present_bytes: int
    is_complete: bool
    is_pinned: bool
    references: tuple[Reference, ...]

    @classmethod
    def of(cls, status: RootStatus, claims: Collection[Claim], entries: Iterable[Entry]) -> Self:
        """What a block store says of it, and the entries that it is kept for."""
        return cls(
            cid=status.root,
            size_bytes=status.size_bytes,
            present_bytes=status.present_bytes,
            is_complete=status.is_complete,
            is_pinned=any(claim.label == PIN and not claim.owner for claim in claims),
            references=tuple(
                Reference(key=entry.header.key, publisher=entry.publisher, name=entry.header.metadata.get(NAME, ""))
                for entry in entries
            ),
        )

    @property
    def name(self) -> str:
        """The first name that an entry gives it; empty if none does."""
        return next((reference.name for reference in self.references if reference.name), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What a collection of garbage removed."""

    blocks: int
    bytes: int


class Blobs:
    """See the module."""

    def __init__(
        self,
        blocks: BlockStore,
        storage: StorageBackend,
        fetcher: Fetcher,
        keeping: Keeping,
        blob_writer: BlobWriter,
        writer: Writer,
        config: DhtConfig,
        clock: Clock,
    ) -> None:
        self._blocks = blocks
        self._storage = storage
        self._fetcher = fetcher
        self._keeping = keeping
        self._pins = Pins(blocks, fetcher, keeping)
        self._blob_writer = blob_writer
        self._writer = writer
        self._config = config
        self._clock = clock

    # Putting

    async def add(
        self,
        source: Source,
        *,
        name: str = "",
        content_type: str = "",
        chunker: str | None = None,
        ttl: float | None = None,
        pin: bool = False,
        wait_s: float | None = None,
        progress: OnProgress | None = None,
    ) -> PutReceipt:
        """Store content of any size under its CID, ``receipt.blob.cid``, by an entry at ``/prime/blob/<cid>``.

        Args:
            source: bytes, a file, or a reader.
            name: of the file; a path's own by default.
            content_type: a media type; by default what the name says.
            chunker: how it is cut, a name of ``CHUNKERS``; ``safetensors-1`` for ``*.safetensors`` by default, else
                ``size-1048576``.
            ttl: seconds that the entry lives; the configuration's by default.
            pin: keep it here too, until :meth:`unpin`.
            wait_s: how long to wait for replicas to hold it, 0 not at all; the configuration's by default.
            progress: is told how far it is; must not block.

        Raises:
            ValidationError: it breaks a rule or a limit.
            StorageError: the file cannot be read, or there is no room for the blocks.
            QueryError: no replica took the entry; nothing is kept here then.
        """
        wait_s, ttl = self._wait_s(wait_s), None if ttl is None else number_of("ttl", ttl)
        async with opened(source) as pieces:
            stored = await self._blob_writer.store(
                pieces,
                chunker_for(chunker, source),
                key=None,
                until_us=self._ends_at_us(ttl, None),
                size=await size_of(source),
                progress=progress,
            )
        name = name or (name_of(source) if isinstance(source, Path) else "")
        statement = Statement(
            key=blob_key(stored.root),
            value=None,
            ttl_s=ttl,
            content_type=content_type or media_type_of(source),
            metadata={NAME: name} if name else {},
        )
        _, receipt = await self._put_stored(statement, stored, None, wait_s, progress, pin=pin)
        if pin:
            await self._keeping.announce(stored.root)
        return receipt

    async def put(
        self,
        statement: Statement,
        source: Value,
        *,
        replication: int | None,
        chunker: str | None,
        wait_s: float | None,
        progress: OnProgress | None,
        signs: Callable[[], None],
    ) -> tuple[Statement, PutReceipt]:
        """Put a value of any size: inline if it is small enough, else as a blob; returns what was put as well.

        Args:
            statement: all but the value.
            signs: called right before the entry is signed.
        """
        wait_s = self._wait_s(wait_s)
        if isinstance(source, BlobRef):
            cid_of(source.cid)  # raises if it is none
            stored = Stored(ref=source, claim=None)
            return await self._put_stored(statement, stored, replication, wait_s, progress, signs)
        limit = self._config.limits.max_inline_bytes
        name = chunker_for(chunker, source)
        if isinstance(source, Path):
            metadata = {NAME: name_of(source), **statement.metadata}
            content_type = statement.content_type or media_type_of(source)
            statement = replace(statement, metadata=metadata, content_type=content_type)
        async with opened(source) as pieces:
            head, is_all = await read_ahead(pieces, limit)
            if is_all:
                statement = replace(statement, value=head)
                signs()
                return statement, await self._writer.put(statement, replication=replication)
            async with aclosing(chained(head, pieces)) as all_pieces:
                stored = await self._blob_writer.store(
                    all_pieces,
                    name,
                    key=statement.key,
                    until_us=self._ends_at_us(statement.ttl_s, statement.expires_at_s),
                    size=await size_of(source),
                    progress=progress,
                )
        return await self._put_stored(statement, stored, replication, wait_s, progress, signs)

    async def _put_stored(
        self,
        statement: Statement,
        stored: Stored,
        replication: int | None,
        wait_s: float,
        progress: OnProgress | None,
        signs: Callable[[], None] | None = None,
        *,
        pin: bool = False,
    ) -> tuple[Statement, PutReceipt]:
        statement = replace(statement, blob=stored.ref)
        kept = self._pins.kept(stored.root, size_bytes=stored.ref.size) if pin else nullcontext()
        with self._blob_writer.left_at_the_end(stored):
            async with self._blob_writer.given_up_if_it_fails(stored) as leaves, kept:
                if signs is not None:
                    signs()
                receipt = await self._writer.put(statement, replication=replication, leaves=leaves)
            # The entry is out: from here on the blocks stay until it ends, whatever becomes of the wait.
            return statement, await self._blob_writer.spread(stored, receipt, wait_s=wait_s, progress=progress)

    # Getting

    async def fetch(
        self,
        cid: CidLike,
        *,
        to: PathLike | None = None,
        start: int = 0,
        stop: int | None = None,
        keep: bool = False,
        max_bytes: int | None = None,
        progress: OnProgress | None = None,
    ) -> bytes:
        """The bytes [start, stop) of a blob, all of it by default.

        Args:
            to: a file to write instead, or a link to one; nothing is returned then. It is there only once it is whole.
                What an interrupted fetch left beside it is not fetched again.
            keep: keep it here, as :meth:`pin` does, and let others have it.
            max_bytes: the most that is taken; if it would be more, only the root has been fetched.
            progress: is told how far it is; must not block.

        Raises:
            BlobError: nobody has it, or it has more than ``max_value_bytes`` and ``to`` was not given.
            StorageError: the file, or the block store, cannot be written; or in the place of the file is what is none.
            ValidationError: it is no CID, or no such part, or of more than ``max_bytes``, or ``to`` no name of a file.
        """
        root, (start, stop) = cid_of(cid), part_of(start, stop)
        to = None if to is None else await trio.to_thread.run_sync(place_of, path_of("to", to))
        if keep:
            told = progress and ToldProgress(progress)
            await self.pin(cid, max_bytes=max_bytes, progress=told)
            progress = None if told and told.is_told else progress  # what follows is a copy of what is here by now
        elif max_bytes is not None:
            await self._check_size(cid, max_bytes, start=start, stop=stop)
        size, hints = size_in(cid), await self._hints(cid)
        if to is None:
            return await self._read(root, size, start, stop, hints, progress)
        destination = FileDestination(to, root, size=size, start=start, stop=stop)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(destination.aclose)
            await destination.open()
            await self._fetcher.fetch(destination, hints, progress=progress)
            await destination.finish()
        return b""

    @asynccontextmanager
    async def stream(
        self,
        cid: CidLike,
        *,
        start: int = 0,
        stop: int | None = None,
        max_bytes: int | None = None,
        progress: OnProgress | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes [start, stop) of a blob, piece by piece, in order; none if it has more than ``max_bytes``.

        Nothing is stored.

        ::

            async with dht.blobs.stream(cid) as pieces:
                async for piece in pieces:
                    ...

        Raises:
            BlobError: nobody has the rest; raised from the loop.
            ValidationError: it is no CID, or no such part, or of more than ``max_bytes``.
        """
        root, (start, stop) = cid_of(cid), part_of(start, stop)
        if max_bytes is not None:
            await self._check_size(cid, max_bytes, start=start, stop=stop)
        async with self._streamed(root, size_in(cid), start, stop, await self._hints(cid), progress) as window:
            yield window

    async def resolve(self, found: Found, *, to: PathLike | None, progress: OnProgress | None) -> Found:
        """What an entry says, its blob fetched; or, with ``to``, written to a file."""
        to = None if to is None else path_of("to", to)
        if found.blob is None:
            if to is None:
                return found
            await trio.to_thread.run_sync(write_small, to, found.value)
            return replace(found, value=b"")
        try:
            cid_of(found)
        except ValidationError as error:
            raise BlobError(f"the value is a blob under a name that is no CID: {error}") from error
        return replace(found, value=await self.fetch(found, to=to, progress=progress))

    # Keeping

    async def pin(self, cid: CidLike, *, max_bytes: int | None = None, progress: OnProgress | None = None) -> None:
        """Have a blob here, fetched if need be, until :meth:`unpin`; and be a provider of it.

        Of one blob one pin fetches at a time; others wait for it.

        Args:
            max_bytes: the most that is taken; if it would be more, only the root has been fetched.
            progress: is told how far it is; must not block.

        Raises:
            BlobError: nobody has it. It stays pinned, and what was fetched stays, so that a later call goes on. Or it
                is none, or of another size than its entry says; then it is not pinned, unless it was before.
            StorageError: there is no room, or it was unpinned meanwhile.
            ValidationError: it is no CID, or has more than ``max_bytes``. It is not pinned.
        """
        root = cid_of(cid)
        if max_bytes is not None:
            await self._check_size(cid, max_bytes)
        await self._pins.pin(root, size=size_in(cid), hints=partial(self._hints, cid), progress=progress)

    async def unpin(self, cid: CidLike) -> bool:
        """Keep a blob no longer, unless for the sake of an entry; whether it was pinned."""
        return await self._pins.unpin(cid_of(cid))

    async def kept(self) -> list[BlobStatus]:
        """The blobs that this node keeps, in the order of their CIDs."""
        found: list[BlobStatus] = []
        for status in await all_roots(self._blocks):
            claims = await self._blocks.claims(status.root)
            entries = await self._storage.get_ops(op_ids_of(claims), now_us=self._clock.now_us())
            found.append(BlobStatus.of(status, claims, entries))
        return found

    async def gc(self) -> Freed:
        """Forget blocks that nothing needs, now; the node does this by itself when it lets go of a blob."""
        collected = await self._keeping.collect()
        return Freed(blocks=collected.blocks, bytes=collected.bytes)

    # Within

    async def _check_size(self, cid: CidLike, max_bytes: int, *, start: int = 0, stop: int | None = None) -> None:
        """Raise if a part of a blob is too large. How large a blob is says its entry, or else its root."""
        root, size = cid_of(cid), size_in(cid)
        if size is None:
            if root.codec is Codec.RAW and max_bytes >= MAX_BLOCK_BYTES:
                return  # it is one block, which cannot be larger, and need not be fetched twice
            async with self._streamed(root, None, 0, 0, await self._hints(cid), None) as nothing:
                await anext(nothing, None)
            size = nothing.walk.size or 0
        if (part_bytes := _part_bytes(size, start, stop)) > max_bytes:
            raise ValidationError(f"blob {root}: {part_bytes:,} bytes; at most {max_bytes:,} were to be taken")

    async def _read(
        self,
        root: Cid,
        size: int | None,
        start: int,
        stop: int | None,
        hints: Collection[PeerId],
        progress: OnProgress | None,
    ) -> bytes:
        self._check_value(root, size, start, stop)
        value = bytearray()
        async with self._streamed(root, size, start, stop, hints, progress) as window:
            async for piece in window:
                self._check_value(root, window.walk.size, start, stop)
                value += piece
        return bytes(value)

    def _check_value(self, root: Cid, size: int | None, start: int, stop: int | None) -> None:
        if size is None:
            return
        if (part_bytes := _part_bytes(size, start, stop)) > self._config.max_value_bytes:
            raise BlobError(
                f"blob {root}: {part_bytes:,} bytes are more than a get returns ({self._config.max_value_bytes:,}, "
                "max_value_bytes): give a path, or take them as a stream"
            )

    @asynccontextmanager
    async def _streamed(
        self,
        root: Cid,
        size: int | None,
        start: int,
        stop: int | None,
        hints: Collection[PeerId],
        progress: OnProgress | None,
    ) -> AsyncIterator[Window]:
        """A blob as it comes. What ``progress`` raises ends it, and comes out at its end as it is, not in a group."""
        window = Window(root, size=size, start=start, stop=stop)
        raised: list[BaseException] = []

        async def fetch() -> None:
            try:
                await self._fetcher.fetch(window, hints, progress=progress and tell, waits=False)
                window.end()
            except PrimeDHTError as error:
                window.end(error)

        def tell(now: BlobProgress) -> None:
            assert progress is not None
            try:
                progress(now)
            except BaseException as error:
                raised.append(error)
                raise

        try:
            async with background_nursery() as nursery:
                nursery.start_soon(fetch)
                yield window
        except BaseExceptionGroup as group:
            if raised and group.split(lambda error: error is raised[0])[1] is None:
                raise raised[0] from None
            raise

    async def _hints(self, cid: CidLike) -> list[PeerId]:
        """Those that should have a blob, for the sake of the entry that was found, or that :meth:`add` puts."""
        if isinstance(cid, Found):
            return [cid.publisher, *await self._keeping.replicas_of(cid.key)]
        return await self._keeping.replicas_of(blob_key(cid_of(cid)))

    def _wait_s(self, wait_s: float | None) -> float:
        """How long a put waits; checked before it does anything."""
        wait_s = self._config.blob_wait_s if wait_s is None else number_of("wait_s", wait_s)
        if not wait_s >= 0:  # nor is it no number
            raise ValidationError(f"wait_s must be a number of seconds, not {wait_s}")
        return wait_s

    def _ends_at_us(self, ttl_s: float | None, expires_at_s: float | None) -> int:
        """When an entry ends that is put now; checked before its blob is cut.

        Raises:
            ValidationError: never, or after the year 10000.
        """
        if expires_at_s is None:
            expires_at_s = self._clock.now_us() / US_PER_S + (self._config.ttl if ttl_s is None else ttl_s)
        if not abs(expires_at_s) < YEAR_10000_US // US_PER_S:  # infinity, or not a number, is not
            raise ValidationError("a blob's entry must end before the year 10000")
        return max(int(expires_at_s * US_PER_S), 0)


def _part_bytes(size: int, start: int, stop: int | None) -> int:
    """How many bytes of a blob of so many lie in [start, stop)."""
    return max(min(size, size if stop is None else stop) - start, 0)
