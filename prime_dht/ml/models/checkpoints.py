"""Checkpoints of a training run: every so many steps, in the background, and back again.

    with Checkpoints(dht, "run-7", every=500) as checkpoints:
        if (last := checkpoints.restore()) is not None:
            network.load_state_dict(last.model.torch())
        for step in range(last.step + 1 if last else 1, STEPS + 1):
            …
            checkpoints.step(step, network.state_dict())

A run's checkpoints are versions of the model ``checkpoints/{run_id}``; the step is in their metadata. One is *complete*
when it is listed, which is after its weights were acknowledged: a process that dies while it saves leaves those before.

**No stall.** A step that is due returns when its tensors are written to a file here. Then they may change; hashing and
sending go on in the background. One checkpoint is saved at a time. If the next is due before, it waits; if yet another
is, that takes its place. So the network decides how many are saved, and never how fast training goes.

**Slots.** The last ``keep`` are kept, all of them until the next is complete; what is older is deleted, so that
replicas let go of its weights. Their entries take turns under ``keep + 1`` subkeys, 0 and up: the swarm remembers every
subkey that was ever used until what was there expires, and a key can only have so many.

**Forks.** What is being saved when a process forks is saved by the parent, which can wait for it. The child begins with
nothing to save, and is, like its client, another publisher.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, SupportsIndex

from prime_dht.errors import BlobError, ConfigError, PrimeDHTError, QueryError, ValidationError
from prime_dht.ml.extra import extra_needed
from prime_dht.ml.models.listing import versions_of
from prime_dht.ml.models.model import Model
from prime_dht.ml.models.version import (
    checked_id,
    copied_metadata,
    description_key,
    subkey_of,
    weights_key,
)

if TYPE_CHECKING:
    from prime_dht.ml.client import LearningDHT
    from prime_dht.ml.models.outgoing import Outgoing
    from prime_dht.ml.tensors import Array, Weights
    from prime_dht.node import PrimeDHT
    from prime_dht.node.arguments import PeerLike

STEP = "step"
"""The name in a version's metadata of the step it was made at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was restored.

    Attributes:
        step: at which it was made.
        model: tensors, metadata, and the file that they are in.
    """

    step: int
    model: Model

    @property
    def tensors(self) -> dict[str, Array]:
        return self.model.tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """A checkpoint to be saved."""

    step: int
    outgoing: Outgoing
    metadata: Mapping[str, object]


class Checkpoints:
    """See the module. Close it, or use it as ``with``: that waits until the last is saved. It is for one thread.

    Args:
        dht: a client; :func:`prime_dht.connect` makes one. With a data directory it has the same identity next time,
            and room for large checkpoints.
        run_id: names the run; what a model id may be.
        every: of so many steps, counted from 1, the last is saved.
        keep: how many checkpoints are kept.
        ttl: seconds that a checkpoint lives; by default as long as the network allows.
        publisher: whose checkpoints are restored; by default anybody's of this run. Name your own peer id if others
            can write to the swarm, and have a data directory, which keeps it.

    Raises:
        ConfigError: ``every`` or ``keep`` is below 1, or no whole number; or the extra ``ml`` is not installed.
        ValidationError: the id is none.

    Attributes:
        model_id: the model whose versions they are.
    """

    def __init__(
        self,
        dht: LearningDHT,
        run_id: str,
        *,
        every: int,
        keep: int = 3,
        ttl: float | None = None,
        publisher: PeerLike | None = None,
    ) -> None:
        # Here, as the class is a name of prime_dht, all of whose names can be looked through without the extra.
        with extra_needed():
            from prime_dht.ml.models import outgoing, pulling, pushing  # noqa: F401
        try:
            every, keep = operator.index(every), operator.index(keep)
        except TypeError as error:
            raise ConfigError(f"every ({every!r}) and keep ({keep!r}) must be whole numbers") from error
        if every < 1 or keep < 1:
            raise ConfigError(f"every ({every}) and keep ({keep}) must be at least 1")
        if run_id is None:  # which would be everybody's whose run has no name
            raise ValidationError("run_id names the run, and is not None")
        self.model_id = checked_id(f"checkpoints/{run_id}")
        self._dht = dht
        self._every = every
        self._keep = keep
        self._ttl = ttl
        self._publisher = publisher
        self._begin_anew()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def step(self, number: SupportsIndex, tensors: Weights, metadata: Mapping[str, object] | None = None) -> bool:
        """Say that a step is done. If a checkpoint is due, it will be saved in the background; whether that is so.

        Args:
            number: of the step.
            tensors: names and arrays, or a torch state dict; may change when this returns.
            metadata: whatever JSON can hold; may change likewise.

        Raises:
            ValidationError, StorageError: it is no number, the tensors or metadata cannot be saved, or not be written
                here.
            PrimeDHTError: an earlier checkpoint, the last of those, could not be saved; this one is under way
                nevertheless.
        """
        self._leave_to_parent()
        try:
            number = operator.index(number)  # numpy's numbers, too; what is no whole number could not be restored
        except TypeError as error:
            raise ValidationError(f"the number of a step is a whole number, not {number!r}") from error
        if number < 1 or number % self._every:
            return False
        from prime_dht.ml.models.outgoing import Outgoing

        said = {**copied_metadata(metadata), STEP: number}
        outgoing = Outgoing.of(tensors, self._dht.models_dir)
        self._save_soon(_Snapshot(step=number, outgoing=outgoing, metadata=said))
        self._raise_failure()
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all is saved that is to be.

        Raises:
            TimeoutError: that takes longer; it goes on.
            PrimeDHTError: a checkpoint could not be saved.
        """
        self._leave_to_parent()
        if self._saving is not None:
            self._saving.result(timeout)
        self._raise_failure()

    def close(self) -> None:
        """As :meth:`wait`."""
        self.wait()

    def restore(self, *, timeout: float | None = None) -> Checkpoint | None:
        """The last complete checkpoint of which all can be had; ``None`` if there is none.

        Args:
            timeout: seconds to list them, and for each of them; one that takes longer cannot be had.

        Raises:
            BlobError, ValidationError, QueryError: there are some, but none can be had: nobody has the weights of the
                last now, or they are no safetensors file, or they did not come in time.
            QueryError: nobody could be asked.
        """
        from prime_dht.ml.models.pulling import pull

        failure: PrimeDHTError | None = None
        for version in reversed(self._dht.model_versions(self.model_id, publisher=self._publisher, timeout=timeout)):
            step = version.metadata.get(STEP)
            if type(step) is not int:
                continue
            try:
                model = self._dht.call(
                    lambda dht, version=version: pull(dht, version, folder=self._dht.models_dir),
                    timeout=timeout,
                )
                return Checkpoint(step=step, model=model)
            except (BlobError, ValidationError, QueryError) as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return None

    # Within

    def _begin_anew(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()  # held for moments, never while waiting
        self._waiting: _Snapshot | None = None
        self._is_saving = False
        self._saving: Future[None] | None = None
        self._failure: BaseException | None = None

    def _leave_to_parent(self) -> None:
        """In a child that was forked: forget what is being saved, and the lock, which a thread may have held."""
        if self._process != os.getpid():
            self._begin_anew()

    def _save_soon(self, snapshot: _Snapshot) -> None:
        """Let it wait in place of what waits, and begin with it unless one is being saved."""
        with self._lock:
            passed_over, self._waiting = self._waiting, snapshot
            is_saving, self._is_saving = self._is_saving, True
        if passed_over is not None:
            passed_over.outgoing.close()
        if not is_saving:
            try:
                self._saving = self._dht.call(self._save_waiting, wait=False)
            except BaseException:  # Ctrl-C among them: nobody will save what waits
                self._drop()
                raise
            self._saving.add_done_callback(self._note_end)

    async def _save_waiting(self, dht: PrimeDHT) -> None:
        while (snapshot := self._next()) is not None:
            try:
                await self._save(dht, snapshot)
            except PrimeDHTError as error:
                self._failure = error
            finally:
                snapshot.outgoing.close()

    def _next(self) -> _Snapshot | None:
        """What waits; if nothing does, nothing is being saved from this moment on."""
        with self._lock:
            snapshot, self._waiting = self._waiting, None
            self._is_saving = snapshot is not None
            return snapshot

    async def _save(self, dht: PrimeDHT, snapshot: _Snapshot) -> None:
        from prime_dht.ml.models.pushing import push

        older = await versions_of(dht, self.model_id, dht.peer_id)
        in_use = {one.subkey for one in older[-self._keep :]}
        subkey = next(one for one in map(subkey_of, range(self._keep + 1)) if one not in in_use)
        await push(
            dht,
            self.model_id,
            snapshot.outgoing,
            taken=self._dht.numbers_taken,
            metadata=snapshot.metadata,
            architecture="",
            ttl=self._ttl,
            subkey=subkey,
        )
        for one in older[: max(len(older) + 1 - self._keep, 0)]:
            if one.subkey != subkey:
                with suppress(QueryError):  # this one is saved all the same; the next one takes the slot, or empties it
                    await dht.delete(description_key(self.model_id), subkey=one.subkey)
                    await dht.delete(weights_key(self.model_id), subkey=one.subkey)

    def _note_end(self, saving: Future[None]) -> None:
        failure = saving.exception()
        if failure is not None:  # the node has ended
            self._failure = failure
            self._drop()

    def _drop(self) -> None:
        """Nothing is being saved, nor is what waits going to be."""
        with self._lock:
            snapshot, self._waiting = self._waiting, None
            self._is_saving = False
        if snapshot is not None:
            snapshot.outgoing.close()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
