"""Blobs, for threads that wait: :class:`BlockingBlobs`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, overload

import trio

from prime_dht.blocking.entries import unchanging
from prime_dht.errors import LocalProtocolError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from prime_dht.blocking.life import Life
    from prime_dht.node.arguments import PathLike
    from prime_dht.node.blobs.blobs import BlobStatus, Freed
    from prime_dht.node.blobs.fetch import OnProgress
    from prime_dht.node.blobs.named import CidLike
    from prime_dht.node.blobs.putting import Source
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import PutReceipt


class BlockingBlobs:
    """Values of any size, by their CIDs: what :attr:`prime_dht.PrimeDHT.blobs` is, with ``timeout`` and ``wait``.

    ``progress`` is called in the node's thread.
    """

    def __init__(self, dht: Life) -> None:
        self._dht = dht

    @overload
    def add(
        self,
        source: Source,
        *,
        name: str = ...,
        content_type: str = ...,
        chunker: str | None = ...,
        ttl: float | None = ...,
        pin: bool = ...,
        wait_s: float | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> PutReceipt: ...
    @overload
    def add(
        self,
        source: Source,
        *,
        name: str = ...,
        content_type: str = ...,
        chunker: str | None = ...,
        ttl: float | None = ...,
        pin: bool = ...,
        wait_s: float | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[PutReceipt]: ...
    def add(
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
        timeout: float | None = None,
        wait: bool = True,
    ) -> PutReceipt | Future[PutReceipt]:
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
        source = source if wait else unchanging(source)
        return self._dht.call(
            lambda dht: dht.blobs.add(
                source,
                name=name,
                content_type=content_type,
                chunker=chunker,
                ttl=ttl,
                pin=pin,
                wait_s=wait_s,
                progress=progress,
            ),
            timeout=timeout,
            wait=wait,
        )

    @overload
    def fetch(
        self,
        cid: CidLike,
        *,
        to: PathLike | None = ...,
        start: int = ...,
        stop: int | None = ...,
        keep: bool = ...,
        max_bytes: int | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> bytes: ...
    @overload
    def fetch(
        self,
        cid: CidLike,
        *,
        to: PathLike | None = ...,
        start: int = ...,
        stop: int | None = ...,
        keep: bool = ...,
        max_bytes: int | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[bytes]: ...
    def fetch(
        self,
        cid: CidLike,
        *,
        to: PathLike | None = None,
        start: int = 0,
        stop: int | None = None,
        keep: bool = False,
        max_bytes: int | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> bytes | Future[bytes]:
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
        return self._dht.call(
            lambda dht: dht.blobs.fetch(
                cid, to=to, start=start, stop=stop, keep=keep, max_bytes=max_bytes, progress=progress
            ),
            timeout=timeout,
            wait=wait,
        )

    def stream(
        self,
        cid: CidLike,
        *,
        start: int = 0,
        stop: int | None = None,
        max_bytes: int | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes [start, stop) of a blob, piece by piece, in order; none if it has more than ``max_bytes``.

        ``timeout`` is for each piece. Nothing is stored.

        ::

            with dht.blobs.stream(cid) as pieces:
                for piece in pieces:
                    ...

        Raises:
            BlobError: nobody has the rest; raised from the loop.
            ValidationError: it is no CID, or no such part, or of more than ``max_bytes``; raised from the loop.
        """
        return self._streamed(cid, start, stop, max_bytes, progress, timeout)

    @contextmanager
    def _streamed(
        self,
        cid: CidLike,
        start: int,
        stop: int | None,
        max_bytes: int | None,
        progress: OnProgress | None,
        timeout: float | None,
    ) -> Iterator[Iterator[bytes]]:
        send, receive = trio.open_memory_channel[bytes](0)

        async def produce(dht: PrimeDHT) -> None:
            part = dht.blobs.stream(cid, start=start, stop=stop, max_bytes=max_bytes, progress=progress)
            async with send, part as pieces:
                async for piece in pieces:
                    await send.send(piece)

        def consume() -> Iterator[bytes]:
            while (piece := self._dht.call(lambda _: anext(receive, None), timeout=timeout)) is not None:
                yield piece
            if producing.cancelled():
                raise LocalProtocolError("the pieces of a stream are read within its with block")
            producing.result()

        producing = self._dht._begin_aside(produce, timeout)
        try:
            yield consume()
        finally:
            producing.cancel()

    def pin(
        self,
        cid: CidLike,
        *,
        max_bytes: int | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> None:
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
        self._dht.call(lambda dht: dht.blobs.pin(cid, max_bytes=max_bytes, progress=progress), timeout=timeout)

    def unpin(self, cid: CidLike, *, timeout: float | None = None) -> bool:
        """Keep a blob no longer, unless for the sake of an entry; whether it was pinned."""
        return self._dht.call(lambda dht: dht.blobs.unpin(cid), timeout=timeout)

    def kept(self, *, timeout: float | None = None) -> list[BlobStatus]:
        """The blobs that this node keeps, in the order of their CIDs."""
        return self._dht.call(lambda dht: dht.blobs.kept(), timeout=timeout)

    def gc(self, *, timeout: float | None = None) -> Freed:
        """Forget blocks that nothing needs, now; the node does this by itself when it lets go of a blob."""
        return self._dht.call(lambda dht: dht.blobs.gc(), timeout=timeout)
