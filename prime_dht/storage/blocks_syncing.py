"""How blocks reach the disk: many at a time, and with them what is true only once they have.

Blocks are added without waiting for the disk. To say that a root is complete is a *finish*: a change of the index that
must not outlive a loss of power without the blocks that were added before. The first caller to find nobody at work
brings all blocks there that have not reached it, and then has the finishes of all who wait by now committed at once,
its own among them. Who comes meanwhile waits, and one of them is next.

- A finish returns once its transaction is safe from a loss of power. One that breaks a rule fails alone; when the disk
  fails, all fail that were to be committed together.
- What the disk failed to take is written again before it is brought there again.
- A cancelled caller's finish is withdrawn while it still waits; else the caller waits until it is committed, so what it
  does next comes after that.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from prime_dht.errors import PrimeDHTError, StorageError
from prime_dht.storage.blocks_files import BlockFiles
from prime_dht.storage.blocks_index import BlockIndex
from prime_dht.storage.blocks_recovery import read_block

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LEAST_BYTES = 4096
"""What a block counts at least among those that have not reached the disk: as much as its file takes there."""


class Unsynced:
    """The blocks that a loss of power might damage. Any thread may call any method.

    Attributes:
        bytes: of all of them, each counted as :data:`LEAST_BYTES` at least.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[bytes, int] = {}
        self._taken: dict[bytes, int] = {}  # those that are being brought to the disk
        self.bytes = 0

    def add(self, sizes: Mapping[bytes, int]) -> None:
        """Blocks of these digests and sizes in bytes are there from now on, whole."""
        with self._lock:
            for digest, size in sizes.items():
                self.bytes -= self._sizes.get(digest, 0)
                self._sizes[digest] = max(size, LEAST_BYTES)
                self.bytes += self._sizes[digest]

    def remove(self, digests: Iterable[bytes]) -> None:
        """Blocks are there no longer, and need not reach the disk."""
        with self._lock:
            for digest in digests:
                self.bytes -= self._sizes.pop(digest, 0) + self._taken.pop(digest, 0)

    def take(self) -> list[bytes]:
        """All of them, in order, to be brought to the disk; :meth:`are_safe` or :meth:`give_back` follows."""
        with self._lock:
            self._taken, self._sizes = self._sizes, {}
            return sorted(self._taken)

    def brought(self) -> list[bytes]:
        """Those that were taken and are there still.

        But not those that were added since: of these digests there were blocks then too, which went with their files.
        """
        with self._lock:
            return [digest for digest in self._taken if digest not in self._sizes]

    def are_safe(self) -> None:
        """Those that were taken have reached the disk, and the index says so."""
        with self._lock:
            self.bytes -= sum(self._taken.values())
            self._taken = {}

    def give_back(self) -> None:
        """Those that were taken have not."""
        with self._lock:
            self.bytes -= sum(size for digest, size in self._taken.items() if digest in self._sizes)
            self._sizes = self._taken | self._sizes
            self._taken = {}


@dataclass(slots=True, eq=False)
class _Finish(Generic[T_co]):
    """What is to be done once blocks have reached the disk.

    Attributes:
        work: changes the index, within a transaction.
        results: what it returned; nothing before that, or if it raised something.
        failure: what it raised, or why nothing could be committed.
    """

    work: Callable[[], T_co]
    results: list[T_co] = field(default_factory=list)
    failure: PrimeDHTError | None = None
    is_over: bool = False


InThread = Callable[[Callable[[], None]], Awaitable[None]]
"""Does work where it may block. Raises what that raises, but :class:`StorageError` when the disk fails."""


class Finishes:
    """See the module.

    Args:
        index: tells the index; asked when there is something to finish.
        unsynced: what is to be brought to the disk; kept up to date.
        forget: forgets those of some blocks that are not whole, as what changes the index.
        change: does what changes the index, one thing at a time.
        read: does what may take long, meanwhile.
    """

    def __init__(
        self,
        index: Callable[[], BlockIndex],
        files: BlockFiles,
        unsynced: Unsynced,
        *,
        forget: Callable[[Sequence[bytes]], None],
        change: InThread,
        read: InThread,
    ) -> None:
        self._index = index
        self._files = files
        self._unsynced = unsynced
        self._forget = forget
        self._change = change
        self._read = read
        self._are_in_doubt = False
        self._waiting: list[_Finish[object]] = []
        self._turn = trio.Lock()

    @property
    def is_under_way(self) -> bool:
        return self._turn.locked()

    async def run(self, work: Callable[[], T]) -> T:
        """Bring to the disk what was added so far, and do ``work`` with the index; returns what that does.

        Raises:
            StorageError: that failed; or what ``work`` raises.
        """
        finish = _Finish(work)
        self._waiting.append(finish)
        try:
            async with self._turn:
                if not finish.is_over:
                    await self._lead()
        finally:
            if finish not in self._waiting and not finish.is_over:  # somebody is about to commit it
                with trio.CancelScope(shield=True):
                    async with self._turn:
                        pass
            if finish in self._waiting:
                self._waiting.remove(finish)
        if finish.failure is not None:
            raise finish.failure
        return finish.results[-1]

    async def _lead(self) -> None:
        batch, self._waiting = self._waiting, []
        try:
            with trio.CancelScope(shield=True):  # most are not its own
                if self._unsynced.bytes:
                    if self._are_in_doubt:
                        await self._change(self._write_again)
                    await self._read(self._sync)
                await self._change(lambda: self._commit(batch))
        except StorageError as error:
            for finish in batch:
                finish.failure = StorageError(str(error))
                finish.failure.__cause__ = error
        except BaseException:  # nobody's failure, but perhaps Ctrl-C: the others have to try themselves
            self._waiting = batch + self._waiting
            raise
        finally:
            self._unsynced.give_back()  # unless they are safe
        for finish in batch:
            finish.is_over = True

    def _sync(self) -> None:
        try:
            self._files.sync(self._unsynced.take())
        except OSError:
            self._are_in_doubt = True
            raise

    def _write_again(self) -> None:
        """Write what the disk did not take into new files: asked again, a system may say that it took what it lost."""
        damaged: list[bytes] = []
        for digest in self._unsynced.take():
            data = read_block(self._files, digest, verify=True)
            if data is None:
                damaged.append(digest)
            else:
                self._files.write(digest, data)
        if damaged:
            self._forget(damaged)
        self._unsynced.give_back()
        self._are_in_doubt = False

    def _commit(self, finishes: Sequence[_Finish[object]]) -> None:
        index = self._index()
        with index.transaction(is_synced=True):
            index.synced(self._unsynced.brought())
            for finish in finishes:
                try:
                    with index.part():
                        finish.results.append(finish.work())
                except PrimeDHTError as error:
                    finish.failure = error
        self._unsynced.are_safe()
