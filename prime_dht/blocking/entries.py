"""Putting and getting entries, for threads that wait, or have futures."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal, TypeVar, cast, overload

from prime_dht.blocking.life import Life

if TYPE_CHECKING:
    from prime_dht.ids import Key
    from prime_dht.node.arguments import PathLike, PeerLike
    from prime_dht.node.blobs.fetch import OnProgress
    from prime_dht.node.blobs.putting import Value
    from prime_dht.node.results import Found, FoundPage, PutReceipt


T = TypeVar("T")


def unchanging(value: T) -> T | bytes:
    """A value that stays what it is when a call that nobody waits for has begun: of a buffer, a copy."""
    return bytes(value) if isinstance(value, bytearray | memoryview) else value


def as_given(given: T) -> T:
    """What is to be read in the node's thread, as it is when the call is made: of what may change meanwhile, a copy."""
    if isinstance(given, Mapping):
        return cast(T, dict(given))
    if isinstance(given, str | bytes | bytearray | memoryview) or not isinstance(given, Iterable):
        return given  # which the node refuses, or needs no copy
    return cast(T, list(given))


class Entries(Life):
    """The operations that move values: of each there can be many under way, with ``wait=False``."""

    @overload
    def put(
        self,
        key: bytes | str,
        value: Value,
        *,
        subkey: bytes = ...,
        ttl: float | None = ...,
        expires_at: float | None = ...,
        replication: int | None = ...,
        metadata: Mapping[str, str] | None = ...,
        content_type: str = ...,
        keep: bool = ...,
        capability: bytes = ...,
        chunker: str | None = ...,
        wait_s: float | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> PutReceipt: ...
    @overload
    def put(
        self,
        key: bytes | str,
        value: Value,
        *,
        subkey: bytes = ...,
        ttl: float | None = ...,
        expires_at: float | None = ...,
        replication: int | None = ...,
        metadata: Mapping[str, str] | None = ...,
        content_type: str = ...,
        keep: bool = ...,
        capability: bytes = ...,
        chunker: str | None = ...,
        wait_s: float | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[PutReceipt]: ...
    def put(
        self,
        key: bytes | str,
        value: Value,
        *,
        subkey: bytes = b"",
        ttl: float | None = None,
        expires_at: float | None = None,
        replication: int | None = None,
        metadata: Mapping[str, str] | None = None,
        content_type: str = "",
        keep: bool = False,
        capability: bytes = b"",
        chunker: str | None = None,
        wait_s: float | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> PutReceipt | Future[PutReceipt]:
        """Store a value under a key, in this node's own slot there.

        Args:
            key: an application's key; ``k`` becomes ``/prime/k``. At most 1 KiB.
            value: bytes, a file, or a reader of bytes, of any size. Over 64 KiB it becomes a blob. Or a blob that the
                swarm has, as a receipt or a find names it; then no bytes leave this node.
            subkey: names one of several slots that this node has under the key; at most 256 bytes.
            ttl: seconds that the value lives; the configuration's by default. Or
            expires_at: when it ends, in seconds since the Unix epoch.
            replication: on how many servers it is stored, 1 ..= k; the configuration's by default.
            metadata: names and texts, signed with the entry.
            content_type: a media type.
            keep: sign and put it again before it expires, for as long as this node runs, or until it next puts or
                deletes anything in the same slot, even if that fails.
            capability: for group keys, what :func:`prime_dht.entries.capability.grant` gave this node.
            chunker, wait_s, progress: of a blob, as in :meth:`~prime_dht.node.blobs.blobs.Blobs.add`.

        Raises:
            ValidationError: the key, value or times break a rule or a limit.
            StorageError: the file cannot be read, or there is no room for the blob's blocks.
            QueryError: no replica took it.
        """
        value = value if wait else unchanging(value)
        key, subkey, metadata = unchanging(key), unchanging(subkey), as_given(metadata)
        return self.call(
            lambda dht: dht.put(
                key,
                value,
                subkey=subkey,
                ttl=ttl,
                expires_at=expires_at,
                replication=replication,
                metadata=metadata,
                content_type=content_type,
                keep=keep,
                capability=capability,
                chunker=chunker,
                wait_s=wait_s,
                progress=progress,
            ),
            timeout=timeout,
            wait=wait,
        )

    @overload
    def get(
        self,
        key: bytes | str,
        *,
        subkey: bytes = ...,
        publisher: PeerLike | None = ...,
        trusted: Collection[PeerLike] | None = ...,
        quorum: int | None = ...,
        latest: bool = ...,
        to: PathLike | None = ...,
        fetch: bool = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> Found | None: ...
    @overload
    def get(
        self,
        key: bytes | str,
        *,
        subkey: bytes = ...,
        publisher: PeerLike | None = ...,
        trusted: Collection[PeerLike] | None = ...,
        quorum: int | None = ...,
        latest: bool = ...,
        to: PathLike | None = ...,
        fetch: bool = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[Found | None]: ...
    def get(
        self,
        key: bytes | str,
        *,
        subkey: bytes = b"",
        publisher: PeerLike | None = None,
        trusted: Collection[PeerLike] | None = None,
        quorum: int | None = None,
        latest: bool = False,
        to: PathLike | None = None,
        fetch: bool = True,
        progress: OnProgress | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> Found | Future[Found | None] | None:
        """The newest live value under a key and subkey, or ``None`` if there is none.

        Args:
            publisher: only this peer's.
            trusted: only these peers', 256 of them at most.
            quorum: replicas whose answers are joined, 1 ..= r; the configuration's ``read_quorum`` by default.
            latest: ask the replicas even if a recent answer is remembered here.
            to: a file to write the value to, of any size; see :meth:`~prime_dht.node.blobs.blobs.Blobs.fetch`.
            fetch: whether to fetch the blob if the value is one, or only to say which (:attr:`Found.blob`).
            progress: of fetching a blob; must not block.

        Raises:
            QueryError: nobody could be asked, too few answered to tell, or what replicas hold is dated too far ahead of
                this node's clock, or above its limits.
            ValidationError: both ``publisher`` and ``trusted`` are given, or the key is empty, or it or the subkey too
                long.
            BlobError: the value is a blob that nobody has, or of more than ``max_value_bytes`` without ``to``.
            StorageError: the file cannot be written.
        """
        key, subkey, trusted = unchanging(key), unchanging(subkey), as_given(trusted)
        return self.call(
            lambda dht: dht.get(
                key,
                subkey=subkey,
                publisher=publisher,
                trusted=trusted,
                quorum=quorum,
                latest=latest,
                to=to,
                fetch=fetch,
                progress=progress,
            ),
            timeout=timeout,
            wait=wait,
        )

    @overload
    def get_all(
        self,
        key: bytes | str,
        *,
        subkeys: Collection[bytes] | None = ...,
        publishers: Collection[PeerLike] | None = ...,
        limit: int | None = ...,
        cursor: bytes | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> FoundPage: ...
    @overload
    def get_all(
        self,
        key: bytes | str,
        *,
        subkeys: Collection[bytes] | None = ...,
        publishers: Collection[PeerLike] | None = ...,
        limit: int | None = ...,
        cursor: bytes | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[FoundPage]: ...
    def get_all(
        self,
        key: bytes | str,
        *,
        subkeys: Collection[bytes] | None = None,
        publishers: Collection[PeerLike] | None = None,
        limit: int | None = None,
        cursor: bytes | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> FoundPage | Future[FoundPage]:
        """Every publisher's live value under a key, in the order of (publisher, subkey), in pages; blobs unfetched.

        Args:
            subkeys, publishers: only these, 256 at most of each; any by default.
            limit: values in the page at most, 1 or more; a page may hold fewer and still not be the last.
            cursor: the ``next_cursor`` of the page before.

        Raises:
            QueryError: nobody could be asked.
            ValidationError: the limit is below 1, too much is named, or the cursor is none that a page ended with.
        """
        key, subkeys, publishers = unchanging(key), as_given(subkeys), as_given(publishers)
        return self.call(
            lambda dht: dht.get_all(key, subkeys=subkeys, publishers=publishers, limit=limit, cursor=cursor),
            timeout=timeout,
            wait=wait,
        )

    def pages(
        self,
        key: bytes | str,
        *,
        subkeys: Collection[bytes] | None = None,
        publishers: Collection[PeerLike] | None = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[FoundPage]:
        """All pages of :meth:`get_all`, each of which is asked for when it is its turn, and has ``timeout`` seconds."""
        cursor: bytes | None = b""
        while cursor is not None:
            page = self.get_all(
                key, subkeys=subkeys, publishers=publishers, limit=limit, cursor=cursor, timeout=timeout
            )
            yield page
            cursor = page.next_cursor

    @overload
    def delete(
        self,
        key: bytes | str,
        *,
        subkey: bytes = ...,
        capability: bytes = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> PutReceipt: ...
    @overload
    def delete(
        self,
        key: bytes | str,
        *,
        subkey: bytes = ...,
        capability: bytes = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[PutReceipt]: ...
    def delete(
        self,
        key: bytes | str,
        *,
        subkey: bytes = b"",
        capability: bytes = b"",
        timeout: float | None = None,
        wait: bool = True,
    ) -> PutReceipt | Future[PutReceipt]:
        """Empty this node's own slot under a key. Others' values stay; they cannot be deleted.

        Args:
            capability: for group keys, as in :meth:`put`.

        Raises:
            QueryError: no replica took the tombstone.
        """
        key, subkey = unchanging(key), unchanging(subkey)
        return self.call(lambda dht: dht.delete(key, subkey=subkey, capability=capability), timeout=timeout, wait=wait)

    @overload
    def put_many(
        self,
        items: Mapping[str, bytes] | Mapping[bytes, bytes] | Iterable[tuple[bytes | str, bytes]],
        *,
        ttl: float | None = ...,
        replication: int | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> list[PutReceipt]: ...
    @overload
    def put_many(
        self,
        items: Mapping[str, bytes] | Mapping[bytes, bytes] | Iterable[tuple[bytes | str, bytes]],
        *,
        ttl: float | None = ...,
        replication: int | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[list[PutReceipt]]: ...
    def put_many(
        self,
        items: Mapping[str, bytes] | Mapping[bytes, bytes] | Iterable[tuple[bytes | str, bytes]],
        *,
        ttl: float | None = None,
        replication: int | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> list[PutReceipt] | Future[list[PutReceipt]]:
        """Store many values in few requests; a receipt for each, in order. See :meth:`put`.

        Raises:
            ValidationError: one of them breaks a rule or a limit; then none is stored.
            QueryError: no replica took any of them.
        """
        if isinstance(items, Mapping):
            items = [(unchanging(key), unchanging(value)) for key, value in items.items()]
        elif isinstance(items, Iterable):  # a pair that is none is told of by the node
            items = [
                (unchanging(pair[0]), unchanging(pair[1]))
                if isinstance(pair, tuple | list) and len(pair) == 2
                else pair
                for pair in items
            ]
        return self.call(lambda dht: dht.put_many(items, ttl=ttl, replication=replication), timeout=timeout, wait=wait)

    @overload
    def get_many(
        self,
        keys: Iterable[bytes | str],
        *,
        quorum: int | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> dict[Key, Found | None]: ...
    @overload
    def get_many(
        self,
        keys: Iterable[bytes | str],
        *,
        quorum: int | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[dict[Key, Found | None]]: ...
    def get_many(
        self,
        keys: Iterable[bytes | str],
        *,
        quorum: int | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> dict[Key, Found | None] | Future[dict[Key, Found | None]]:
        """The newest live value of each key, in few requests; wire keys name them in the result. See :meth:`get`.

        Returns:
            for each key its value, or ``None`` if there is none. Keys of which too few replicas answered are left out.

        Raises:
            QueryError: that is so of all keys.
        """
        if isinstance(keys, Iterable) and not isinstance(keys, str | bytes | bytearray | memoryview):
            keys = [unchanging(key) for key in keys]  # of what is none, or a single key, the node tells
        return self.call(lambda dht: dht.get_many(keys, quorum=quorum), timeout=timeout, wait=wait)
