"""Bringing what is gathered: look for entries, fetch and read their values, look again, until it is done.

*Looking.* One lookup of the round's key tells all entries, and brings the values that are small. If something is still
missing then, others follow, ever further apart, and only at what is missing.

*Fetching.* A few values are fetched at a time, each to a file, where what came of it stays when it is put off. One that
has had its turn of some seconds is put off if another waits that is to come before it. So members whose values come
slowly, or not at all, hold up nobody else's.

*Reading* is left to worker threads where it takes long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol

import trio

from prime_dht.background import background_nursery
from prime_dht.errors import BlobError, PrimeDHTError, QueryError, StorageError, ValidationError
from prime_dht.ml.gradients.gathering import Candidate, Expected, Gathering, Name, read_gradient

if TYPE_CHECKING:
    from prime_dht.ids import PeerId
    from prime_dht.ml.gradients.gradient import Gradient
    from prime_dht.node.results import Found, FoundPage

FETCHES_AT_ONCE = 3
"""One less than a node carries out at a time: who fetches something else from it need not wait for slow members."""

TURN_S = 5.0
"""The first; one that was put off has this much more each time, for it has to read what it had."""

AGAIN_AFTER_S = 1.0
"""What nobody has is asked for again after this, and this much later each time: it may be put just now."""

FIRST_PAUSE_S = 0.1
PAUSE_AT_MOST_S = 2.0
"""Between two looks. Each pause is twice the one before."""

IN_THREAD_FROM_BYTES = 128 << 10
"""Values, and tensors, of so many bytes are read by a worker thread; less is hardly worth to hand over."""

PUBLISHERS_AT_ONCE = 256
"""As many as one request can name."""

MAX_PAGES = 128
"""That are read in a row, each of some 15 entries at least: there are 1,024 members at most. Where a look had to end,
the next one goes on, so that nobody's rubbish hides for long what comes behind it."""


class Source(Protocol):
    """Where a round's gradients are."""

    async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
        """The entries under the round's key, of some publishers or of all, a page at a time; blobs unfetched.

        Raises:
            QueryError: nobody could be asked.
        """
        ...

    async def fetch(self, found: Found, path: Path, tell: Callable[[int], None]) -> None:
        """Write the blob that an entry refers to to a file, going on from where an interrupted fetch left off.

        Args:
            tell: is told, now and then, how many bytes have come.

        Raises:
            BlobError: nobody has it.
            StorageError: the file cannot be written.
        """
        ...


async def bring(
    gathering: Gathering[Name],
    source: Source,
    expected: Expected,
    publishers: Callable[[], Collection[PeerId] | None],
    *,
    timeout_s: float,
) -> None:
    """Bring gradients until the gathering is done, or ``timeout_s`` have passed.

    Args:
        publishers: whose entries are to be looked at now; ``None`` is everybody's. Once it is nobody's it stays so.

    Raises:
        QueryError: not one look succeeded in all that time.
        StorageError: the disk is full, or fails.
    """
    with _temporary_folder() as folder:
        bringing = _Bringing(gathering, source, expected, publishers, folder)
        with trio.move_on_after(timeout_s):
            await bringing.run()
    if not gathering.has_looked:
        raise QueryError(f"nobody could be asked within {timeout_s:g} s: {bringing.failed_look}")


class _Bringing(Generic[Name]):
    """One bringing, under way.

    Attributes:
        failed_look: why the last look that failed did.
    """

    def __init__(
        self,
        gathering: Gathering[Name],
        source: Source,
        expected: Expected,
        publishers: Callable[[], Collection[PeerId] | None],
        folder: Path,
    ) -> None:
        self.failed_look: QueryError | None = None
        self._failure: PrimeDHTError | None = None
        self._gathering = gathering
        self._source = source
        self._expected = expected
        self._publishers = publishers
        self._folder = folder
        self._changed = trio.Event()
        self._behind: dict[int, bytes] = {}  # where looks at some publishers ended, though there was more

    async def run(self) -> None:
        async with background_nursery() as nursery:
            nursery.start_soon(self._to_its_end, self._look_always)
            for _ in range(FETCHES_AT_ONCE):
                nursery.start_soon(self._to_its_end, partial(self._bring_each, nursery))
            await self._until(lambda: self._gathering.is_done or self._failure is not None)
        if self._failure is not None:
            raise self._failure

    async def _to_its_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """What ends a task ends all, and is raised as itself, not in a group."""
        try:
            await work()
        except PrimeDHTError as error:
            self._failure = error
            self._tell()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _tell(self) -> None:
        """The gathering has changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def _look_always(self) -> None:
        pause_s = FIRST_PAUSE_S
        while (publishers := self._publishers()) is None or publishers:
            try:
                await self._look(publishers)
            except QueryError as error:
                self.failed_look = error
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_AT_MOST_S)

    async def _look(self, publishers: Collection[PeerId] | None) -> None:
        if publishers is None:
            await self._turn_pages(None, 0)
        else:
            ordered = sorted(publishers)
            for start in range(0, len(ordered), PUBLISHERS_AT_ONCE):
                await self._turn_pages(ordered[start : start + PUBLISHERS_AT_ONCE], start)
        if not self._behind or self._gathering.is_named:
            self._gathering.end_look()
        self._tell()

    async def _turn_pages(self, publishers: Collection[PeerId] | None, start: int) -> None:
        cursor = self._behind.pop(start, b"")
        for _ in range(MAX_PAGES):
            page = await self._source.page(publishers, cursor)
            for found in page:
                self._gathering.take(found)
            self._tell()
            if page.next_cursor is None:
                return
            cursor = page.next_cursor
        self._behind[start] = cursor

    async def _bring_each(self, nursery: trio.Nursery) -> None:
        while True:
            await self._until(lambda: self._gathering.is_waited_for)
            if (candidate := self._gathering.next()) is None:
                continue
            try:
                gradient = await self._brought(candidate)
            except ValidationError as error:
                self._gathering.reject(candidate, str(error))
            except (BlobError, QueryError) as error:
                nursery.start_soon(self._put_off_later, candidate, str(error))
            else:
                if gradient is None:
                    self._gathering.put_off(candidate, "others come sooner")
                else:
                    self._gathering.accept(candidate, gradient)
            self._tell()

    async def _put_off_later(self, candidate: Candidate[Name], reason: str) -> None:
        candidate.reason = reason
        await trio.sleep(AGAIN_AFTER_S * (1 + candidate.turns))
        self._gathering.put_off(candidate, reason)
        self._tell()

    async def _brought(self, candidate: Candidate[Name]) -> Gradient | None:
        """The gradient that a candidate is; ``None`` if its turn ended before it had come."""
        if candidate.found.blob is None:
            return await _read(candidate, partial(read_gradient, candidate, candidate.found.value, self._expected))
        path = self._folder / candidate.found.op_id.hex()
        with trio.CancelScope() as turn:
            async with background_nursery() as nursery:
                nursery.start_soon(self._end_turn, turn, candidate)
                await self._source.fetch(candidate.found, path, candidate.note_come)
        if turn.cancelled_caught:
            return None
        return await _read(candidate, partial(_read_file, path, candidate, self._expected))

    async def _end_turn(self, turn: trio.CancelScope, candidate: Candidate[Name]) -> None:
        turn_s = TURN_S * (1 + candidate.turns)
        while True:
            await trio.sleep(turn_s)
            candidate.note_time(turn_s)
            if self._gathering.has_sooner(candidate):
                turn.cancel()
            turn_s = TURN_S


async def _read(candidate: Candidate[Name], read: Callable[[], Gradient]) -> Gradient:
    if max(candidate.value_bytes, candidate.announcement.tensor_bytes) >= IN_THREAD_FROM_BYTES:
        return await trio.to_thread.run_sync(read)
    await trio.lowlevel.checkpoint()
    return read()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="prime-dht-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"there is no folder for what is fetched: {error.strerror}") from error
    with folder as path:
        yield Path(path)


def _read_file(path: Path, candidate: Candidate[Name], expected: Expected) -> Gradient:
    try:
        value = path.read_bytes()
        path.unlink()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    return read_gradient(candidate, value, expected)
