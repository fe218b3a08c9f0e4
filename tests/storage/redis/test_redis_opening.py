"""Opening a Redis store: what is refused, at once, in one line that says where and never a password."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from prime_dht.errors import StorageError
from prime_dht.storage.redis import RedisBackend
from prime_dht.storage.redis_connection import RedisAddress, parse_address
from prime_dht.testing.redis_server import RedisServer

StartRedis = Callable[..., RedisServer]
StartTlsRedis = Callable[[], tuple[int, Path]]


async def refusal(url: str, prefix: str = "a") -> str:
    with pytest.raises(StorageError) as caught:
        async with RedisBackend.open(url, prefix=prefix):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@asynccontextmanager
async def a_server_that_says(answers: list[bytes]) -> AsyncIterator[str]:
    """Something on loopback that gives these answers in turn, whatever it is asked."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            for each in answers:
                await stream.receive_some()
                await stream.send_all(each)
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield f"redis://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "localhost:6379",
        "http://:secret@localhost",
        "redis://",
        "redis://:secret@/0",
        "redis://:secret@localhost:port",
        "redis://:secret@localhost:99999",
        "redis://:secret@localhost/zero",
        "redis://:secret@localhost/0?db=1",
        "redis://:secret@localhost/0#1",
        "redis://:se/cret@localhost",
        "redis://[::1",
        "unix://",
        "unix://:secret@host/path",
    ],
)
async def test_what_is_no_url_of_a_server_is_refused_without_being_repeated(url: str) -> None:
    said = await refusal(url)
    assert said.startswith("a Redis URL is redis://")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://host", "redis://host:6379/0"),
        ("redis://user:secret@host:1/2", "redis://host:1/2"),
        ("rediss://[::1]/", "rediss://[::1]:6379/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_the_text_of_an_address_has_neither_user_nor_password(url: str, text: str) -> None:
    address = parse_address(url)
    assert str(address) == text
    assert "secret" not in repr(address)


def test_user_and_password_are_percent_decoded() -> None:
    address: RedisAddress = parse_address("redis://us%3Aer:pa%2Fss%40@host")
    assert (address.username, address.password) == ("us:er", "pa/ss@")


async def test_an_empty_prefix_is_refused(redis_server: RedisServer) -> None:
    assert await refusal(redis_server.url, "") == f"{redis_server.url}/0: the prefix of a store cannot be empty"


async def test_a_server_that_is_not_there_is_named(start_redis: StartRedis) -> None:
    server = start_redis()
    server.kill()
    assert await refusal(server.url) == f"{server.url}/0: it cannot be reached: Connection refused"
    nobody = f"redis://{'a' * 70}"
    assert (await refusal(nobody)).startswith(f"{nobody}:6379/0: it cannot be reached: ")
    assert await refusal("unix:///nowhere") == "unix:///nowhere: it cannot be reached: No such file or directory"


async def test_a_wrong_password_is_refused_and_not_told(start_redis: StartRedis) -> None:
    server = start_redis(requirepass="pa/ss word")
    url = server.url.replace("//", "//{}@")
    refused = f"{server.url}/0: the server refuses the user or the password"
    for credentials in (":secret", "nobody:secret"):
        assert await refusal(url.format(credentials)) == refused
    assert await refusal(server.url) == refused
    async with RedisBackend.open(url.format(":pa%2Fss%20word"), prefix="a") as store:
        await store.put_meta("name", b"value")


async def test_a_database_that_does_not_exist_is_refused(redis_server: RedisServer) -> None:
    url = f"{redis_server.url}/99"
    assert await refusal(url) == f"{url}: the server says: DB index is out of range"


async def test_what_does_not_speak_redis_is_refused() -> None:
    async with a_server_that_says([b"HTTP/1.1 400 Bad Request\r\n\r\n"]) as url:
        assert await refusal(url) == f"{url}/0: what is there does not speak the Redis protocol"


async def test_a_server_that_hangs_up_is_refused() -> None:
    async with a_server_that_says([]) as url:
        assert await refusal(url) == f"{url}/0: the connection failed: Connection lost while receiving response"


async def test_a_server_that_is_too_old_is_refused() -> None:
    hello = b"%3\r\n+version\r\n+6.2.14\r\n+proto\r\n:3\r\n+id\r\n:1\r\n"
    async with a_server_that_says([hello, b"+OK\r\n", b"+PONG\r\n"]) as url:
        assert await refusal(url) == f"{url}/0: needs Redis 7 or later, and this is 6.2.14"


async def test_a_read_only_replica_is_refused(start_redis: StartRedis, redis_server: RedisServer) -> None:
    replica = start_redis(replicaof=f"127.0.0.1 {redis_server.port}")
    assert (await refusal(replica.url)).startswith(f"{replica.url}/0: the server says: ")


async def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(redis_server: RedisServer, prefix: str) -> None:
    async with RedisBackend.open(redis_server.url, prefix=prefix):
        pass
    redis_server.command("HSET", f"{prefix}:rows", "#schema", "1000")
    for _ in range(2):
        said = await refusal(redis_server.url, prefix)
        assert said.endswith("written by a newer prime_dht (this one knows schema 4); left as it is")
    assert redis_server.command("HGET", f"{prefix}:rows", "#schema") == "1000"


@pytest.mark.parametrize(
    "damage", [("SET", "{}:rows", "1"), ("HSET", "{}:rows", "a", "b"), ("ZADD", "{}:order", "0", "a")]
)
async def test_keys_that_are_not_a_store_are_refused_and_left_as_they_are(
    redis_server: RedisServer, prefix: str, damage: tuple[str, ...]
) -> None:
    redis_server.command(*(word.format(prefix) for word in damage))
    said = await refusal(redis_server.url, prefix)
    assert said.endswith(f"prefix '{prefix}': not a whole store of prime_dht; it was left as it is")
    assert redis_server.command("EXISTS", f"{prefix}:rows", f"{prefix}:order", f"{prefix}:lease") == "1"


async def test_half_a_store_is_refused(redis_server: RedisServer, prefix: str) -> None:
    async with RedisBackend.open(redis_server.url, prefix=prefix):
        pass
    redis_server.command("DEL", f"{prefix}:order")
    assert "not a whole store" in await refusal(redis_server.url, prefix)


async def test_a_unix_socket_serves_as_well(start_redis: StartRedis, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    start_redis(unixsocket=str(path))
    async with RedisBackend.open(f"unix://{path}", prefix="a") as store:
        await store.put_meta("name", b"value")
        assert await store.get_meta("name") == b"value"


async def test_tls_is_used_with_servers_whose_certificate_is_trusted(
    start_tls_redis: StartTlsRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, certificate = start_tls_redis()
    url = f"rediss://127.0.0.1:{port}"
    assert (await refusal(url)).startswith(f"{url}/0: it cannot be reached safely: ")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with RedisBackend.open(url, prefix="a") as store:
        await store.put_meta("name", b"value")
        assert await store.get_meta("name") == b"value"


@pytest.mark.parametrize("lingers_s", [None, 0], ids=["closes", "resets"])
async def test_a_server_that_hangs_up_while_tls_begins_is_refused(lingers_s: int | None) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1)
            if lingers_s is not None:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, lingers_s))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, hang_up, 0, host="127.0.0.1"))
        url = f"rediss://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        assert await refusal(url) == f"{url}/0: it cannot be reached safely: the connection was lost while TLS began"
        nursery.cancel_scope.cancel()


async def test_an_error_of_the_block_comes_out_as_itself(redis_server: RedisServer, prefix: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with RedisBackend.open(redis_server.url, prefix=prefix):
            raise ZeroDivisionError
    async with RedisBackend.open(redis_server.url, prefix=prefix):
        pass
