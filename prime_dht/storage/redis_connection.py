"""A connection to a Redis server that is made again whenever it is lost.

- **One connection.** The server does one thing at a time and answers in the order of asking; so all calls go down one
  connection without waiting for each other, and a second would add nothing.
- **Sent is seen through.** A call that has been sent waits for its answer even when its caller is cancelled, but never
  longer than :data:`ANSWER_DEADLINE_S`: so what is under way is bounded by those who ask. Then the connection is given
  up, for everyone. While it waits for a connection a call can be cancelled.
- **Lost is asked again.** A call whose connection was lost before the answer is made again on the next one, for as long
  as its *patience* lasts. It may have been carried out, so a call that writes has to be safe to repeat.
- **Connecting** is tried again after :data:`FIRST_PAUSE_S` and each time after twice as long, up to
  :data:`MAX_PAUSE_S`. Only the first attempt of all is the last when it fails: at start a mistake is more likely.

The client is coredis, of which only the connection is used. Its pool has to be opened and closed by the same task,
which a backend, closed by whoever likes to, cannot promise; and it keeps many connections.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import unquote, urlsplit

import anyio
import trio
from anyio.abc import ByteStream
from coredis.connection import BaseConnection, TCPLocation
from coredis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoScriptError,
    ReadOnlyError,
    RedisError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError

from prime_dht.errors import NotWrittenError, StorageError
from prime_dht.storage.redis_scripts import Script

if TYPE_CHECKING:
    from trio_typing import TaskStatus

CONNECT_DEADLINE_S = 5.0
ANSWER_DEADLINE_S = 5.0
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 2.0
DEFAULT_PORT = 6379

_LOST = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What a connection that ends raises before coredis has it: while TLS begins."""

_FAILURES = (RedisError, OSError, trio.TooSlowError, ValueError, *_LOST)
"""What connecting raises; ``ValueError`` for a host whose name cannot be one."""

_REFUSALS = ("OOM ", "MISCONF ", "NOREPLICAS ")
"""How answers begin that a server which may not write gives before the first line of a script. (That it is a replica
coredis has a class for. What it says of permissions may also come from the midst of a script.)
"""

Argument: TypeAlias = "bytes | Callable[[], bytes]"
Reply: TypeAlias = "bytes | int | list[Reply] | dict[bytes, Reply] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where a server is, and who asks. Its text names neither user nor password."""

    scheme: str
    host: str
    port: int
    path: str
    database: int
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/{self.database}"


def parse_address(url: str) -> RedisAddress:
    """Read ``redis://[[user]:password@]host[:port][/database]``, or ``rediss://`` for TLS, or ``unix:///path``.

    User and password are percent-encoded.

    >>> str(parse_address("redis://:secret@localhost/2"))
    'redis://localhost:6379/2'

    Raises:
        StorageError: it is none of them.
    """
    try:
        parts = urlsplit(url)
        host, port, database = parts.hostname or "", parts.port or DEFAULT_PORT, 0
        match parts.scheme:
            case "redis" | "rediss":
                understood = bool(host)
                database = int(parts.path.removeprefix("/") or 0)
            case "unix":
                understood = not host and len(parts.path) > 1
            case _:
                understood = False
    except ValueError:
        understood = False
    if not understood or parts.query or parts.fragment:
        # The URL is not repeated: nobody can say which part of it was meant to be the password.
        raise StorageError(
            "a Redis URL is redis://[[user]:password@]host[:port][/database], the same with rediss://, or unix:///path"
        ) from None
    return RedisAddress(
        scheme=parts.scheme,
        host=host,
        port=port,
        path=parts.path,
        database=database,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


class RedisConnection:
    """See the module. Somebody has to :meth:`run` it."""

    def __init__(self, address: RedisAddress, *, client_name: str, patience_s: float) -> None:
        self.address = address
        self._client_name = client_name
        self._patience_s = patience_s
        self._established: BaseConnection | None = None
        self._was_established = trio.Event()
        self._failure = ""
        self._life = trio.CancelScope()

    async def run(self, *, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Be connected until closed. Has started, with the server's version, once there is a connection.

        Raises:
            StorageError: the first attempt to connect failed.
        """
        with self._life:
            try:
                await self._stay_connected(task_status)
            except _FAILURES as error:
                raise self._storage_error(error) from error
            pause_s = FIRST_PAUSE_S
            while True:
                await trio.sleep(pause_s)
                try:
                    await self._stay_connected()
                    pause_s = FIRST_PAUSE_S
                except _FAILURES as error:
                    self._failure = _meaning(error)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def close(self) -> None:
        """End :meth:`run`, and the connection with it."""
        self._life.cancel()

    async def call(self, script: Script, keys: Sequence[bytes], arguments: Sequence[Argument]) -> Reply:
        """Have a script run at least once; returns what it said the last time.

        Args:
            arguments: one that is a function is asked anew each time the script is sent.

        Raises:
            NotWrittenError: it was never sent, or refused as a whole.
            StorageError: there was no answer in time, or it is an error.
        """

        async def ask(connection: BaseConnection) -> Reply:
            said = (argument() if callable(argument) else argument for argument in arguments)
            call = (b"%d" % len(keys), *keys, *said)
            try:
                return cast(Reply, await connection.create_request(b"EVALSHA", script.sha1, *call))
            except NoScriptError:
                return cast(Reply, await connection.create_request(b"EVAL", script.source, *call))

        return await self._until_answered(ask)

    async def command(self, *words: bytes) -> Reply:
        """Have a command carried out at least once; returns what the server said the last time.

        Raises:
            NotWrittenError: it was never sent, or refused.
            StorageError: there was no answer in time, or it is an error.
        """

        async def ask(connection: BaseConnection) -> Reply:
            return cast(Reply, await connection.create_request(*words))

        return await self._until_answered(ask)

    def _storage_error(self, error: Exception, kind: type[StorageError] = StorageError) -> StorageError:
        """What went wrong with the server, in one line."""
        return kind(f"{self.address}: {_meaning(error)}")

    async def _until_answered(self, ask: Callable[[BaseConnection], Awaitable[Reply]]) -> Reply:
        was_lost = False  # and may have been carried out
        with trio.move_on_after(self._patience_s):
            while True:
                await self._was_established.wait()
                connection = self._established
                if connection is None:
                    continue
                try:
                    with trio.CancelScope(shield=True):
                        return await ask(connection)
                except (RedisConnectionError, TimeoutError) as error:
                    was_lost = True
                    self._failure = _meaning(error)
                    self._give_up(connection)
                except RedisError as error:
                    is_undone = not was_lost and _is_refusal(error)
                    raise self._storage_error(error, NotWrittenError if is_undone else StorageError) from error
        raise (StorageError if was_lost else NotWrittenError)(
            f"{self.address}: no answer for {self._patience_s:g} s: {self._failure}"
        )

    async def _stay_connected(self, task_status: TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and stay so until the connection is lost; one of ``_FAILURES`` if it cannot be made."""
        connection = _Connection(self.address, await _connect(self.address), client_name=self._client_name)

        def establish() -> None:
            self._established = connection
            self._was_established.set()
            task_status.started(connection.server_version or "")

        try:
            await connection.run(task_status=_WhenStarted(establish))
        finally:
            self._give_up(connection)

    def _give_up(self, connection: BaseConnection) -> None:
        connection.invalidate()
        if self._established is connection:
            self._established = None
            self._was_established = trio.Event()


async def _connect(address: RedisAddress) -> ByteStream:
    with trio.fail_after(CONNECT_DEADLINE_S):
        match address.scheme:
            case "unix":
                return await anyio.connect_unix(address.path)
            case "rediss":
                context = ssl.create_default_context()
                # Redis does not say goodbye as the standard asks, and answers have lengths: nothing can be cut off.
                return await anyio.connect_tcp(
                    address.host, address.port, ssl_context=context, tls_standard_compatible=False
                )
            case _:
                return await anyio.connect_tcp(address.host, address.port)


class _Connection(BaseConnection):
    """A coredis connection over a stream that is there already: coredis leaks its buffers when it cannot connect."""

    def __init__(self, address: RedisAddress, stream: ByteStream, *, client_name: str) -> None:
        super().__init__(
            TCPLocation(address.host, address.port),
            stream_timeout=ANSWER_DEADLINE_S,
            client_name=client_name,
            username=address.username,
            password=address.password,
            db=address.database,
        )
        self._connected_stream = stream
        self.register_connect_callback(_check_that_it_is_ready)

    async def _connect(self) -> ByteStream:
        return self._connected_stream

    def describe(self) -> str:
        return str(self.location)


@dataclass(frozen=True, slots=True)
class _WhenStarted:
    """A task status that passes on that the task has started."""

    tell: Callable[[], None]

    def started(self, _: None = None, /) -> None:
        self.tell()


async def _check_that_it_is_ready(connection: BaseConnection) -> None:
    # The greeting is answered while a server reads its data from the disk, and nothing else is.
    await connection.create_request(b"PING")


def _is_refusal(error: RedisError) -> bool:
    return isinstance(error, ReadOnlyError) or str(error).startswith(_REFUSALS)


def _meaning(error: Exception) -> str:
    """What went wrong, in words for who set the server up."""
    match error:
        case AuthenticationError():
            return "the server refuses the user or the password"
        case BusyLoadingError():
            return "the server is still loading its data"
        case InvalidResponse():
            return "what is there does not speak the Redis protocol"
        case RedisConnectionError(__cause__=TimeoutError()) | TimeoutError(errno=None):
            return f"no answer within {ANSWER_DEADLINE_S:g} s"
        case RedisConnectionError():
            return f"the connection failed: {error}"
        case RedisError():
            return f"the server says: {error}"
        case trio.TooSlowError():
            return f"it cannot be reached within {CONNECT_DEADLINE_S:g} s"
        case anyio.EndOfStream() | anyio.BrokenResourceError() | anyio.ClosedResourceError():
            return "it cannot be reached safely: the connection was lost while TLS began"
        case ssl.SSLError():
            return f"it cannot be reached safely: {error}"
        case _:
            return f"it cannot be reached: {_root_cause(error)}"


def _root_cause(error: BaseException) -> str:
    while cause := error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__:
        error = cause
    match error:
        case OSError(errno=int(number)) if number > 0:
            return os.strerror(number)
        case OSError(strerror=str(meaning)):
            return meaning
        case _:
            return str(error)
