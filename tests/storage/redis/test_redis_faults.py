"""A Redis store whose server dies, stalls or is cut off: nothing acknowledged is lost, and nothing is done twice."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from prime_dht.entries.entry import Entry
from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.ids import OpId
from prime_dht.storage import redis_connection, redis_store
from prime_dht.storage import redis_scripts as scripts
from prime_dht.storage.base import EntryQuery, Gone, PutOutcome, PutResult
from prime_dht.storage.redis import RedisBackend
from prime_dht.storage.redis_connection import RedisConnection, parse_address
from prime_dht.storage.redis_store import MAX_WRITES, NUMBER_BYTES, RedisStore
from prime_dht.testing.redis_server import RedisServer
from prime_dht.testing.storage_samples import KEY, NOW_US, make_entry, read_all

if TYPE_CHECKING:
    from trio_typing import TaskStatus

StartRedis = Callable[..., RedisServer]
StartTlsRedis = Callable[[], tuple[int, Path]]

INSERTED = PutResult(PutOutcome.INSERTED)


class Wire:
    """Stands between backends and their server, and can be cut: at once, or when something passes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connections: set[trio.CancelScope] = set()
        self.url = ""
        self.is_cut = False
        self.question_to_lose = b""
        self.loses_answer = False
        self.holds_answers = self.holds_questions = False
        self.held, self.let_go = trio.Event(), trio.Event()
        self.hung_up = trio.Event()

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self._carry, 0, host="127.0.0.1"))
            self.url = f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            task_status.started()

    def cut(self) -> None:
        """Break every connection, and let no new one through until it is mended."""
        self.is_cut = True
        for scope in self._connections:
            scope.cancel()

    def mend(self) -> None:
        self.is_cut = False

    async def _carry(self, client: trio.SocketStream) -> None:
        async with client:
            if self.is_cut:
                return
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as server:
                async with trio.open_nursery() as nursery:
                    self._connections.add(nursery.cancel_scope)
                    nursery.start_soon(self._carry_questions, client, server, nursery.cancel_scope)
                    async for answer in server:
                        if self.holds_answers:
                            self.held.set()
                            await self.let_go.wait()
                        if self.loses_answer:
                            self.loses_answer = False
                            break
                        await client.send_all(answer)
                    nursery.cancel_scope.cancel()
                self._connections.discard(nursery.cancel_scope)

    async def _carry_questions(
        self, client: trio.SocketStream, server: trio.SocketStream, connection: trio.CancelScope
    ) -> None:
        async for question in client:
            if self.holds_questions:
                self.held.set()
                await trio.sleep_forever()
            if self.question_to_lose and self.question_to_lose in question:
                self.question_to_lose = b""
                break
            await server.send_all(question)
        self.hung_up.set()
        connection.cancel()


@asynccontextmanager
async def open_wire(port: int) -> AsyncIterator[Wire]:
    wire = Wire(port)
    async with trio.open_nursery() as nursery:
        await nursery.start(wire.run)
        yield wire
        nursery.cancel_scope.cancel()


@pytest.fixture
async def wire(redis_server: RedisServer) -> AsyncIterator[Wire]:
    async with open_wire(redis_server.port) as wire:
        yield wire


async def test_a_put_whose_answer_was_lost_still_says_what_it_did(wire: Wire, prefix: str) -> None:
    old, new = make_entry(b"old", created_at_us=100), make_entry(b"new", created_at_us=101)
    async with RedisBackend.open(wire.url, prefix=prefix) as store:
        await store.put_entries([old], now_us=NOW_US)
        wire.loses_answer = True
        assert await store.put_entries([new], now_us=NOW_US) == [PutResult(PutOutcome.INSERTED, Gone.of(old))]
        assert not wire.loses_answer
        assert (await store.stats()).entries == 1


async def test_a_deletion_whose_answer_was_lost_still_says_what_retired(wire: Wire, prefix: str) -> None:
    entry = make_entry(expires_at_us=300)
    async with RedisBackend.open(wire.url, prefix=prefix) as store:
        await store.put_entries([entry], now_us=NOW_US)
        wire.loses_answer = True
        assert (await store.delete_expired(now_us=900, retire_before_us=900)).retired == (Gone.of(entry),)
        assert not wire.loses_answer
        assert (await store.delete_expired(now_us=900, retire_before_us=900)).retired == ()


async def test_a_put_that_was_lost_on_the_way_is_made_again(wire: Wire, prefix: str) -> None:
    entry = make_entry(b"an uncommon value")
    async with RedisBackend.open(wire.url, prefix=prefix) as store:
        wire.question_to_lose = b"an uncommon value"
        assert await store.put_entries([entry], now_us=NOW_US) == [INSERTED]
        assert wire.question_to_lose == b""
        assert await read_all(store, EntryQuery(key=KEY)) == [entry]


async def test_calls_that_are_under_way_when_the_wire_is_cut_are_made_again(wire: Wire, prefix: str) -> None:
    results: list[PutResult] = []
    async with RedisBackend.open(wire.url, prefix=prefix) as store:

        async def put(number: int) -> None:
            results.extend(await store.put_entries([make_entry(subkey=b"%d" % number)], now_us=NOW_US))

        wire.loses_answer = True
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(put, number)
        assert not wire.loses_answer
        assert results == [INSERTED] * 200
        assert (await store.stats()).entries == 200


async def test_a_server_that_stays_away_is_an_error_and_is_used_again_when_it_is_back(
    wire: Wire, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "MAX_PAUSE_S", 0.05)
    async with RedisBackend.open(wire.url, prefix=prefix, patience_s=0.5) as store:
        wire.cut()
        with pytest.raises(StorageError, match=rf"^{wire.url}/0: no answer for 0\.5 s: the connection failed: [\w ]+$"):
            await store.put_meta("name", b"value")
        with pytest.raises(NotWrittenError):  # this one was never sent
            await store.put_meta("name", b"value")
        wire.mend()
        await store.put_meta("name", b"value")
        assert await store.get_meta("name") == b"value"


async def test_a_server_behind_tls_that_hangs_up_for_a_while_is_used_again_when_it_is_back(
    start_tls_redis: StartTlsRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "MAX_PAUSE_S", 0.05)
    port, certificate = start_tls_redis()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with open_wire(port) as wire:
        url = wire.url.replace("redis:", "rediss:")
        async with RedisBackend.open(url, prefix="a", patience_s=0.5) as store:
            wire.cut()
            with pytest.raises(StorageError, match="the connection was lost while TLS began"):
                await store.put_meta("name", b"value")
            wire.mend()
            await store.put_meta("name", b"value")
            assert await store.get_meta("name") == b"value"


@pytest.mark.parametrize(
    ("prevent", "allow"),
    [
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    ],
)
async def test_a_server_that_takes_no_writes_has_certainly_not_written(
    start_redis: StartRedis, prevent: str, allow: str
) -> None:
    server = start_redis()
    async with RedisBackend.open(server.url, prefix="a") as store:
        server.command(*prevent.split())
        with pytest.raises(NotWrittenError, match="the server says: "):
            await store.put_meta("name", b"value")
        server.command(*allow.split())
        assert await store.get_meta("name") is None


async def test_what_a_server_refuses_the_second_time_may_have_been_written_the_first(start_redis: StartRedis) -> None:
    server = start_redis()
    async with open_wire(server.port) as wire, RedisBackend.open(wire.url, prefix="a") as store:
        failures: list[StorageError] = []

        async def put() -> None:
            with pytest.raises(StorageError, match="NOREPLICAS") as caught:
                await store.put_meta("name", b"value")
            failures.append(caught.value)

        await store.put_meta("other", b"value")  # so that the server knows the script
        wire.is_cut = wire.loses_answer = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            while wire.loses_answer:
                await trio.testing.wait_all_tasks_blocked(0.01)
            server.command("CONFIG", "SET", "min-replicas-to-write", "1")
            wire.mend()
        assert not isinstance(failures[0], NotWrittenError)
        assert await store.get_meta("name") == b"value"


async def test_a_store_closes_though_its_server_is_away(
    wire: Wire, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "RELEASE_PATIENCE_S", 0.05)
    async with RedisBackend.open(wire.url, prefix=prefix) as store:
        wire.cut()
        await store.aclose()
        with pytest.raises(StorageError, match="the store is closed"):
            await store.stats()


async def test_what_was_sent_is_seen_through_though_its_caller_is_cancelled_and_what_was_not_is_not_done(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    sent = [make_entry(subkey=b"%d" % i) for i in range(MAX_WRITES)]
    waiting = make_entry(subkey=b"waiting")
    finished: set[OpId] = set()
    async with RedisBackend.open(server.url, prefix="a") as store:

        async def put(entry: Entry) -> None:
            assert await store.put_entries([entry], now_us=NOW_US) == [INSERTED]
            finished.add(entry.op_id)

        server.suspend()
        async with trio.open_nursery() as nursery:
            for entry in sent:
                nursery.start_soon(put, entry)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(put, waiting)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
            server.resume()
        assert finished == {entry.op_id for entry in sent}
        assert await store.get_ops([waiting.op_id], now_us=NOW_US) == []
        assert (await store.stats()).entries == len(sent)


async def test_what_a_stalled_server_comes_to_late_is_not_done_twice(
    start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "ANSWER_DEADLINE_S", 0.5)
    server = start_redis()
    old, new = make_entry(b"old", created_at_us=100), make_entry(b"new", created_at_us=101)
    async with open_wire(server.port) as wire, RedisBackend.open(wire.url, prefix="a") as store:
        await store.put_entries([old], now_us=NOW_US)
        results: list[PutResult] = []

        async def put() -> None:
            results.extend(await store.put_entries([new], now_us=NOW_US))

        def scripts_run() -> int:
            return int(server.command("INFO", "commandstats").split("cmdstat_evalsha:calls=")[1].split(",")[0])

        before = scripts_run()
        server.suspend()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            await wire.hung_up.wait()
            assert results == []
            server.resume()
        assert results == [PutResult(PutOutcome.INSERTED, Gone.of(old))]
        assert scripts_run() >= before + 2


async def test_a_call_that_comes_after_a_later_one_from_its_seat_does_nothing(
    redis_server: RedisServer, prefix: str
) -> None:
    token = b"0" * 32
    async with trio.open_nursery() as nursery:
        connection = RedisConnection(parse_address(redis_server.url), client_name="test", patience_s=1)
        await nursery.start(connection.run)
        store = RedisStore(connection, prefix, token)
        await store.take()
        keys = [f"{prefix}:{part}".encode() for part in ("rows", "order", "lease")]

        async def put_meta(seat: bytes, number: int, value: bytes) -> None:
            await connection.call(
                scripts.PUT_META, keys, [token, seat, number.to_bytes(NUMBER_BYTES, "big") + bytes(8), b"name", value]
            )

        await put_meta(b"0", 258, b"first")
        await put_meta(b"0", 511, b"second")
        await put_meta(b"0", 511, b"second again")
        with pytest.raises(StorageError, match="STALE"):
            await put_meta(b"0", 258, b"first again")
        assert await store.read(scripts.GET_ROWS, b"nname") == [b"second"]
        await put_meta(b"1", 259, b"third")
        assert await store.read(scripts.GET_ROWS, b"nname") == [b"third"]
        await store.aclose()


@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
async def test_every_acknowledged_entry_survives_a_server_that_is_killed_under_load(
    start_redis: StartRedis, appendfsync: str
) -> None:
    server = start_redis(appendfsync=appendfsync)
    acknowledged: list[OpId] = []
    async with RedisBackend.open(server.url, prefix="a") as store:

        async def put_for_ever(writer: int) -> None:
            for number in count():
                entries = [make_entry(subkey=b"%d/%d/%d" % (writer, number, part)) for part in range(3)]
                assert await store.put_entries(entries, now_us=NOW_US) == [INSERTED] * 3
                acknowledged.extend(entry.op_id for entry in entries)

        async with trio.open_nursery() as nursery:
            for writer in range(8):
                nursery.start_soon(put_for_ever, writer)
            for kill in range(1, 5):
                while len(acknowledged) < 90 * kill:
                    await trio.lowlevel.checkpoint()
                server.kill()
                await trio.to_thread.run_sync(server.start)
            while len(acknowledged) < 90 * 5:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        found = await store.get_ops(acknowledged, now_us=NOW_US)
        assert {entry.op_id for entry in found} == set(acknowledged)
        assert all(entry.value is not None for entry in found)
        assert (await store.stats()).entries % 3 == 0  # each put was of three


@pytest.mark.parametrize("is_other_write_first", [False, True])
async def test_whoever_changes_entries_next_is_told_that_the_server_went_back_to_an_earlier_state(
    start_redis: StartRedis, tmp_path: Path, is_other_write_first: bool
) -> None:
    kept, lost, late, later = (make_entry(subkey=subkey) for subkey in (b"1", b"2", b"3", b"4"))
    undone = r"^redis://\S+ prefix 'a': the server has lost what it had acknowledged: it went back to an earlier state$"
    server, log = start_redis(), tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof"
    async with RedisBackend.open(server.url, prefix="a") as store:
        await store.put_entries([kept], now_us=NOW_US)
        size_bytes = os.stat(log).st_size
        await store.put_entries([lost], now_us=NOW_US)
        server.kill()
        os.truncate(log, size_bytes)
        await trio.to_thread.run_sync(server.start)
        if is_other_write_first:
            await store.put_meta("name", b"value")
            assert await store.get_meta("name") == b"value"
        with pytest.raises(StorageError, match=undone) as raised:
            await store.put_entries([late], now_us=NOW_US)
        assert not isinstance(raised.value, NotWrittenError)  # after which a node would not look what there is
        assert await read_all(store, EntryQuery(key=KEY)) == [kept]
        assert await store.put_entries([later], now_us=NOW_US) == [INSERTED]


async def test_one_loss_is_told_once_though_several_find_it_out(start_redis: StartRedis, tmp_path: Path) -> None:
    server, log = start_redis(), tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof"
    async with RedisBackend.open(server.url, prefix="a") as store:
        size_bytes = os.stat(log).st_size
        await store.put_meta("name", b"lost")
        server.kill()
        os.truncate(log, size_bytes)
        await trio.to_thread.run_sync(server.start)

        async def put() -> None:
            with pytest.raises(StorageError, match="it went back to an earlier state"):
                await store.put_entries([make_entry(b"refused")], now_us=NOW_US)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(put)
            nursery.start_soon(store.put_meta, "name", b"value")
        assert await store.get_meta("name") == b"value"
        assert await store.put_entries([make_entry()], now_us=NOW_US) == [INSERTED]


async def test_what_was_under_way_when_the_server_went_back_to_an_earlier_state_tells_of_it(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    kept, lost, late = (make_entry(subkey=subkey) for subkey in (b"1", b"2", b"3"))
    server, log = start_redis(), tmp_path / "appendonlydir" / "appendonly.aof.1.incr.aof"
    async with open_wire(server.port) as wire, RedisBackend.open(wire.url, prefix="a") as store:
        await store.put_entries([kept], now_us=NOW_US)
        size_bytes = os.stat(log).st_size
        acknowledged, refused = trio.Event(), trio.Event()

        async def put_lost() -> None:
            assert await store.put_entries([lost], now_us=NOW_US) == [INSERTED]
            acknowledged.set()

        async def put_late() -> None:
            with pytest.raises(StorageError, match="it went back to an earlier state"):
                await store.put_entries([late], now_us=NOW_US)
            refused.set()

        async with trio.open_nursery() as nursery:
            wire.holds_answers = True
            nursery.start_soon(put_lost)
            await wire.held.wait()
            wire.holds_questions, wire.held = True, trio.Event()
            nursery.start_soon(put_late)
            await wire.held.wait()  # so it was sent before the other was acknowledged
            wire.holds_answers = wire.holds_questions = False
            wire.let_go.set()
            await acknowledged.wait()
            wire.cut()
            server.kill()
            os.truncate(log, size_bytes)
            await trio.to_thread.run_sync(server.start)
            wire.mend()
        assert refused.is_set()
        assert await read_all(store, EntryQuery(key=KEY)) == [kept]


@pytest.mark.parametrize("forget", ["FLUSHALL", "DEL a:rows", "DEL a:order"])
async def test_a_server_that_forgot_the_store_is_an_error_and_not_an_empty_store(
    start_redis: StartRedis, forget: str
) -> None:
    server = start_redis()
    async with RedisBackend.open(server.url, prefix="a") as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        server.command(*forget.split())
        for call in (partial(store.get_meta, "name"), partial(store.put_meta, "name", b"value")):
            with pytest.raises(StorageError, match=r"it is gone: the server lost it, or somebody deleted it$"):
                await call()


async def test_a_script_that_the_server_forgot_is_sent_again(start_redis: StartRedis) -> None:
    server = start_redis()
    async with RedisBackend.open(server.url, prefix="a") as store:
        await store.put_meta("name", b"before")
        server.command("SCRIPT", "FLUSH")
        await store.put_meta("name", b"after")
        assert await store.get_meta("name") == b"after"


async def test_a_value_that_rotted_is_an_error_and_not_a_value(redis_server: RedisServer, prefix: str) -> None:
    rot = """
        for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
            if field:sub(1, 1) == 'v' then redis.call('HSET', KEYS[1], field, 'rot') end
        end
    """
    async with RedisBackend.open(redis_server.url, prefix=prefix) as store:
        await store.put_entries([make_entry()], now_us=NOW_US)
        redis_server.command("EVAL", rot, "1", f"{prefix}:rows")
        with pytest.raises(StorageError, match="a stored entry was damaged"):
            await store.get_entries(EntryQuery(key=KEY), now_us=NOW_US)
