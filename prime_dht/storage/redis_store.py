"""Holding a store in a Redis server: by one process at a time, and with each writing call carried out at most once.

A process that opens a store *takes* it: it puts its *token* into the store, which the scripts compare with that of
whoever calls, and into the store's *lease*, a key that ends by itself unless it is renewed. Another process can take
the store when there is no lease, or when the server has no connection of the process whose lease it is, which names its
connections after its token: so after a crash nobody has to wait. The first process, if it is still alive, is shut out.

How the scripts do their part is said in :mod:`prime_dht.storage.redis_scripts`.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import cast

import trio

from prime_dht.background import background_nursery
from prime_dht.errors import StorageError
from prime_dht.storage import redis_scripts as scripts
from prime_dht.storage.redis_connection import Argument, RedisConnection, parse_address
from prime_dht.storage.redis_scripts import Script

SCHEMA = 4
"""2: plain records and provider records are counted and placed. 3: ops are found by how their ids begin. 4: own slots
are forgotten.

See :mod:`prime_dht.storage.redis_migration`.
"""

OLDEST_SERVER = 7
LEASE_S = 10.0
RENEW_EVERY_S = 3.0
RELEASE_PATIENCE_S = 0.5
ABANDONED_AFTER_S = 30 * 24 * 3600
NUMBER_BYTES = 8
MAX_WRITES = 64
"""Writing calls under way; more wait for their turn."""

_REFUSALS = {
    "TAKEN": "another process has taken it",
    "UNDONE": "the server has lost what it had acknowledged: it went back to an earlier state",
    "GONE": "it is gone: the server lost it, or somebody deleted it",
    "FOREIGN": "not a whole store of prime_dht; it was left as it is",
    "NEWER": f"written by a newer prime_dht (this one knows schema {SCHEMA}); left as it is",
}
_ABANDONED_AFTER_MS = ABANDONED_AFTER_S * 1000
_LEASE_MS = b"%d" % (LEASE_S * 1000)
_COUNT = struct.Struct(">d")


class UndoneError(StorageError):
    """The server has lost what it had acknowledged."""


class RedisStore:
    """A store that this process holds; :func:`open_store` makes one."""

    def __init__(self, connection: RedisConnection, prefix: str, token: bytes) -> None:
        self._connection = connection
        self._name = f"{connection.address} prefix {prefix!r}"
        self._keys = [f"{prefix}:{part}".encode(errors="surrogatepass") for part in ("rows", "order", "lease")]
        self._token = token
        self._turn = trio.Semaphore(MAX_WRITES)
        self._free_seats = list(range(MAX_WRITES))
        self._writes = 0
        self._acknowledged = 0.0  # of all writes there have ever been to the store, as far as the server told
        self._is_undone = False  # and nobody who changes entries has been told
        self._is_open = True
        self._under_way = 0
        self._finished = trio.Event()

    def __str__(self) -> str:
        return self._name

    async def read(self, script: Script, *arguments: bytes) -> list[bytes | None]:
        """Run a reading script.

        Raises:
            StorageError: it cannot be read, is closed, or is no longer held by this process.
        """
        with self._counted():
            return cast("list[bytes | None]", await self._call(script, *arguments))

    async def write(self, script: Script, *arguments: bytes, of_entries: bool = False) -> bytes:
        """Run a writing script once; or, when that fails or is cancelled, at most once.

        Args:
            of_entries: whether it changes them. Those under way fail when the server has lost what it had acknowledged,
                or else the next one, whoever found that out, so that those who go by the entries know.

        Raises:
            NotWrittenError: the server was away all the time, or takes nothing now: it is full, a replica, or its disk
                fails.
            StorageError: it cannot be written, is closed, or is no longer held by this process.
        """
        with self._counted():
            async with self._turn:
                if of_entries and self._is_undone:
                    self._is_undone = False
                    raise UndoneError(f"{self}: {_REFUSALS['UNDONE']}")
                try:
                    return await self._write(script, arguments)
                except UndoneError:
                    if of_entries:
                        self._is_undone = False
                        raise
                    return await self._write(script, arguments)

    async def take(self) -> None:
        """Begin to hold the store, which is made if there is none.

        Raises:
            StorageError: another process holds it, or what is there is not a store this version can read.
        """
        holder = await self._take(instead_of=b"")
        if holder and not await self._is_connected(holder):
            holder = await self._take(instead_of=holder)
        if holder:
            raise StorageError(f"{self}: another process has it open")

    async def risk_of_loss(self) -> str:
        """Why the server may lose what it has acknowledged; nothing if it is set up not to."""
        names = (b"appendonly", b"appendfsync", b"maxmemory", b"maxmemory-policy")
        try:
            settings = cast("dict[bytes, bytes]", await self._connection.command(b"CONFIG", b"GET", *names))
        except StorageError:
            return "it does not tell whether it keeps on disk what it acknowledges"
        if settings.get(b"appendonly") != b"yes":
            return "it keeps no append-only file (appendonly no), so it forgets when it stops"
        if settings.get(b"appendfsync") == b"no":
            return "it does not wait for the disk (appendfsync no), so a loss of power undoes half a minute"
        if settings.get(b"maxmemory") != b"0" and settings.get(b"maxmemory-policy") != b"noeviction":
            return "it deletes what it likes when its memory is full (maxmemory-policy is not noeviction)"
        return ""

    async def renew(self) -> None:
        """Have the lease begin anew. Closing does not wait for it.

        Raises:
            StorageError: that failed, or another process has taken the store.
        """
        self._check_open()
        await self._call(scripts.RENEW, _LEASE_MS, b"%d" % _ABANDONED_AFTER_MS)

    async def hold(self) -> None:
        """Renew the lease until the store is closed."""
        while self._is_open:
            await trio.sleep(RENEW_EVERY_S)
            # The next call meets what is wrong as well, and can tell someone.
            with suppress(StorageError):
                await self.renew()

    async def aclose(self) -> None:
        """Wait for the calls under way, let go of the store, and disconnect."""
        if not self._is_open:
            await trio.lowlevel.checkpoint()
            return
        self._is_open = False
        with trio.CancelScope(shield=True):
            if self._under_way:
                await self._finished.wait()
            # If the server is away, the lease ends by itself.
            with trio.move_on_after(RELEASE_PATIENCE_S), suppress(StorageError):
                await self._call(scripts.RELEASE)
        self._connection.close()

    async def _write(self, script: Script, arguments: Sequence[bytes]) -> bytes:
        seat = self._free_seats.pop()
        self._writes += 1
        number, known = self._writes.to_bytes(NUMBER_BYTES, "big"), 0.0

        def number_and_count() -> bytes:
            # Of the time it is sent: one that is sent again goes to a server that may lack what came in between.
            nonlocal known
            known = self._acknowledged
            return number + _COUNT.pack(known)

        try:
            said = cast(bytes, await self._call(script, b"%d" % seat, number_and_count, *arguments))
        except UndoneError:
            if self._acknowledged >= known:  # else another call that was under way has found that out
                self._acknowledged, self._is_undone = 0.0, True
            raise
        finally:
            self._free_seats.append(seat)
        self._acknowledged = max(self._acknowledged, *_COUNT.unpack_from(said))
        return said[_COUNT.size :]

    async def _take(self, *, instead_of: bytes) -> bytes:
        """Take the store unless somebody else holds it; returns their token."""
        kept_ms = b"%d" % _ABANDONED_AFTER_MS
        return cast(bytes, await self._call(scripts.TAKE, b"%d" % SCHEMA, _LEASE_MS, kept_ms, instead_of))

    async def _is_connected(self, holder: bytes) -> bool:
        try:
            clients = cast(bytes, await self._connection.command(b"CLIENT", b"LIST"))
        except StorageError:
            return True  # we may not look
        return b" name=" + _client_name(holder) + b" " in clients

    async def _call(self, script: Script, *arguments: Argument) -> object:
        try:
            return await self._connection.call(script, self._keys, (self._token, *arguments))
        except StorageError as error:
            code = str(error.__cause__).partition(" ")[0]
            refusal = _REFUSALS.get(code)
            if refusal is None:
                raise
            raise (UndoneError if code == "UNDONE" else StorageError)(f"{self}: {refusal}") from error

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._check_open()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._is_open and not self._under_way:
                self._finished.set()

    def _check_open(self) -> None:
        if not self._is_open:
            raise StorageError(f"{self}: the store is closed")


@asynccontextmanager
async def open_store(url: str, *, prefix: str, patience_s: float) -> AsyncIterator[RedisStore]:
    """Hold the store under a prefix for as long as the block lasts.

    Raises:
        StorageError: the URL is none, the server cannot be used, another process holds the store, or what is there is
            not a store this version can read.
    """
    address = parse_address(url)
    if not prefix:
        raise StorageError(f"{address}: the prefix of a store cannot be empty")
    token = secrets.token_hex(16).encode()
    connection = RedisConnection(address, client_name=_client_name(token).decode(), patience_s=patience_s)
    store = RedisStore(connection, prefix, token)
    async with background_nursery() as nursery:
        version = await nursery.start(connection.run)
        if int(version.partition(".")[0]) < OLDEST_SERVER:
            raise StorageError(f"{address}: needs Redis {OLDEST_SERVER} or later, and this is {version}")
        await store.take()
        nursery.start_soon(store.hold)
        try:
            yield store
        finally:
            await store.aclose()


def _client_name(token: bytes) -> bytes:
    return b"prime_dht-" + token
