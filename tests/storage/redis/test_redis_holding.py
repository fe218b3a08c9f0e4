"""One process at a time holds a Redis store, and what is left by a dead one can be taken at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from prime_dht.errors import StorageError
from prime_dht.storage import redis_store
from prime_dht.storage.redis import RedisBackend
from prime_dht.storage.redis_connection import RedisConnection, parse_address
from prime_dht.storage.redis_store import LEASE_S, RedisStore
from prime_dht.testing.redis_server import RedisServer
from prime_dht.testing.storage_samples import NOW_US, make_entry


@asynccontextmanager
async def a_process_that_stopped(server: RedisServer, prefix: str) -> AsyncIterator[RedisStore]:
    """A store that is held by somebody who renews nothing; the connection ends with the block."""
    connection = RedisConnection(parse_address(server.url), client_name="prime_dht-stopped", patience_s=1)
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        store = RedisStore(connection, prefix, b"stopped")
        await store.take()
        yield store
        connection.close()


async def test_an_open_store_cannot_be_opened_again_until_it_is_closed(redis_server: RedisServer, prefix: str) -> None:
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        with pytest.raises(StorageError, match=r"^redis://\S+ prefix '.+': another process has it open$"):
            async with RedisBackend.open(redis_server.url, prefix=prefix):
                pass
        await store.put_meta("name", b"value")
        await store.aclose()
        async with RedisBackend.open(redis_server.url, prefix=prefix) as again:
            assert await again.get_meta("name") == b"value"


async def test_who_closes_a_store_and_is_cancelled_has_let_go_of_it(redis_server: RedisServer, prefix: str) -> None:
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.aclose()
        assert redis_server.command("EXISTS", f"{prefix}:lease") == "0"


async def test_a_stopped_process_keeps_its_store_until_its_lease_ends(redis_server: RedisServer, prefix: str) -> None:
    async with a_process_that_stopped(redis_server, prefix):
        left_ms = int(redis_server.command("PTTL", f"{prefix}:lease"))
        assert 0 < left_ms <= LEASE_S * 1000
        with pytest.raises(StorageError, match="another process has it open"):
            async with RedisBackend.open(redis_server.url, prefix=prefix):
                pass
        redis_server.command("PEXPIRE", f"{prefix}:lease", "0")
        async with RedisBackend.open(redis_server.url, prefix=prefix):
            pass


async def test_the_store_of_a_process_without_a_connection_is_free_at_once(
    redis_server: RedisServer, prefix: str
) -> None:
    async with a_process_that_stopped(redis_server, prefix):
        pass
    assert redis_server.command("GET", f"{prefix}:lease") == "stopped"
    async with RedisBackend.open(redis_server.url, prefix=prefix):
        assert redis_server.command("GET", f"{prefix}:lease") != "stopped"


async def test_a_process_whose_store_was_taken_can_neither_read_nor_write(
    redis_server: RedisServer, prefix: str
) -> None:
    async with RedisBackend.open(redis_server.url, prefix=prefix) as first:
        redis_server.command("PEXPIRE", f"{prefix}:lease", "0")
        async with RedisBackend.open(redis_server.url, prefix=prefix) as second:
            calls: list[Callable[[], Awaitable[object]]] = [
                first.stats,
                lambda: first.put_entries([make_entry()], now_us=NOW_US),
                lambda: first.delete_expired(now_us=NOW_US, retire_before_us=NOW_US),
            ]
            for call in calls:
                with pytest.raises(StorageError, match=r"prefix '.+': another process has taken it$"):
                    await call()
            await first.aclose()
            await second.put_meta("name", b"value")
            assert redis_server.command("EXISTS", f"{prefix}:lease") == "1"


async def test_a_lease_is_renewed_and_made_again_if_it_ended_but_not_if_it_is_anothers(
    redis_server: RedisServer, prefix: str
) -> None:
    async with a_process_that_stopped(redis_server, prefix) as store:
        for left_ms in ("1000", "0"):
            redis_server.command("PEXPIRE", f"{prefix}:lease", left_ms)
            await store.renew()
            assert int(redis_server.command("PTTL", f"{prefix}:lease")) > 1000
        redis_server.command("PEXPIRE", f"{prefix}:lease", "0")
        async with RedisBackend.open(redis_server.url, prefix=prefix):
            with pytest.raises(StorageError, match="another process has taken it"):
                await store.renew()


async def test_an_open_store_renews_its_lease_by_itself(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = trio.Event()
    renew = RedisStore.renew

    async def tell(self: RedisStore) -> None:
        await renew(self)
        renewed.set()

    monkeypatch.setattr(RedisStore, "renew", tell)
    monkeypatch.setattr(redis_store, "RENEW_EVERY_S", 0.01)
    async with RedisBackend.open(redis_server.url, prefix=prefix):
        await renewed.wait()
