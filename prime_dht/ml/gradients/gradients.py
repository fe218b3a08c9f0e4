"""Publishing, collecting and fetching gradients: :class:`Gradients`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, SupportsFloat, SupportsIndex, TypeVar, overload

from prime_dht.blocking.call import checked_timeout
from prime_dht.entries.capability import capability_in
from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.ml.codecs import CONTENT_TYPE, Codec, ErrorFeedback, codec_named, encode
from prime_dht.ml.gradients.announcement import (
    Announcement,
    as_metrics,
    capability_ends_at_s,
    check_run,
    checked_round,
    gradient_key,
    group_of,
    subkey_of,
)
from prime_dht.ml.gradients.bringing import bring
from prime_dht.ml.gradients.gathering import MAX_NAMES, Expected, Gathering, check_value_size, collected
from prime_dht.ml.gradients.gradient import Collected, Gradient
from prime_dht.ml.tensors import Spec, Weights, as_tensors, size_bytes_of, spec_of
from prime_dht.node.arguments import peer_ids_of
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht.blocking import BlockingDHT
    from prime_dht.ids import Key
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import Found, FoundPage, PutReceipt

DEFAULT_TTL_S = 4 * 3600.0
"""Or as long as the network allows, if that is less. A gradient is of use in its round only; this leaves time to look
into a run that went wrong. Blobs go with it."""

Name = TypeVar("Name")


class Gradients:
    """The gradients of members who train together, round by round.

    Args:
        dht: joined; its identity is the member's.
        group: whose members alone can publish: what its keys begin with, as ``prime-dht group create`` prints it, or
            its root. By default the group of the capability; without either anybody can.
        capability: that this member was given, to publish in a group: the text in the file that
            ``prime-dht group invite`` made, or what :func:`prime_dht.entries.capability.grant` returned.
        run: tells this training run's rounds from another's: 1 to 64 letters, digits, ``.``, ``_`` and ``-``. Without
            it, rounds of the same number are the same round.
        ttl_s: seconds that a gradient lives unless :meth:`publish` is told otherwise.

    Raises:
        ValidationError: the group, the capability or the run is malformed.
    """

    def __init__(
        self,
        dht: BlockingDHT,
        *,
        group: str | bytes | None = None,
        capability: bytes | str = b"",
        run: str = "",
        ttl_s: float = DEFAULT_TTL_S,
    ) -> None:
        self._dht = dht
        self._capability = capability_in(capability)
        self._group = group_of(group, self._capability)
        self._run = check_run(run)
        self._ttl_s = ttl_s

    @overload
    def publish(
        self,
        round: SupportsIndex,
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = ...,
        *,
        weight: float = ...,
        codec: str | Codec | ErrorFeedback = ...,
        ttl: float | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> PutReceipt: ...
    @overload
    def publish(
        self,
        round: SupportsIndex,
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = ...,
        *,
        weight: float = ...,
        codec: str | Codec | ErrorFeedback = ...,
        ttl: float | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[PutReceipt]: ...
    @overload
    def publish(
        self,
        round: SupportsIndex,
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = ...,
        *,
        weight: float = ...,
        codec: str | Codec | ErrorFeedback = ...,
        ttl: float | None = ...,
        timeout: float | None = ...,
        wait: bool,
    ) -> PutReceipt | Future[PutReceipt]: ...
    def publish(
        self,
        round: SupportsIndex,  # noqa: A002 - what everybody calls it
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = None,
        *,
        weight: float = 1.0,
        codec: str | Codec | ErrorFeedback = "none",
        ttl: float | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> PutReceipt | Future[PutReceipt]:
        """Publish this member's gradient for a round. Of several for one round, the newest counts.

        Args:
            tensors: names and arrays, or torch tensors. When this returns, they may change.
            metrics: what others may want to know before they fetch it: numbers and short texts.
            weight: how much it is to count, such as the number of examples it was computed from.
            codec: ``none``, ``fp16``, ``bf16``, ``int8`` or ``topk``; or one with parameters, such as
                ``TopK(fraction=0.05)``; or an ``ErrorFeedback``, of which a member has one for all its rounds.
            ttl: seconds that it lives; 4 hours by default, or less where the network does not allow so much or the
                capability ends sooner.
            timeout: seconds after which this fails.
            wait: if ``False``, return a future. Of several for one round that are under way together, any may
                become the newest.

        A failure leaves an ``ErrorFeedback`` as it was, so that the same gradient can be published again; with
        ``wait=False``, when others may be under way by then, what failed is added to the next gradient instead.

        Raises:
            ValidationError: the codec, the weight or a metric is none, or the codec cannot take the tensors.
            QueryError: no replica took it, or it was not done in time.
        """
        arrays = as_tensors(tensors)
        feedback = codec if isinstance(codec, ErrorFeedback) else None
        announced = _codec_of(codec)
        announcement = Announcement(
            round=checked_round(round),
            codec=announced,
            weight=_weight(weight),
            tensor_bytes=size_bytes_of(spec_of(arrays)),
            metrics=as_metrics(metrics or {}),
        )
        before = None if feedback is None else feedback.errors
        value = encode(arrays, announced) if feedback is None else feedback.encode(arrays)
        try:
            check_value_size(len(value), announcement)
            done = self._put(announcement, value, ttl, timeout, wait)
        except BaseException:  # Ctrl-C among them: what was not published is still to be sent
            if feedback is not None and before is not None:
                feedback.errors = before
            raise
        if feedback is not None and isinstance(done, Future):
            done.add_done_callback(partial(_take_back_if_failed, feedback, value))
        return done

    def collect(
        self,
        round: SupportsIndex,  # noqa: A002 - what everybody calls it
        *,
        members: Collection[PeerId | str] | None = None,
        minimum: int | None = None,
        timeout: float = 60.0,
        spec: Spec | None = None,
        max_bytes: int | None = None,
    ) -> Collected:
        """The gradients of a round, as soon as there are enough, or those that have come when time is up.

        Args:
            members: whose; others' are left out. By default everybody's, which is for swarms without strangers.
            minimum: how many are enough. By default there has to be one of each member, or the news that it cannot be
                used; and without members, those that are there now are enough.
            timeout: seconds after which what has come is returned. What is published later is missing.
            spec: that they must have, such as :func:`~prime_dht.ml.tensors.spec_of` the own; by default any.
            max_bytes: that the tensors of one may take in memory; more is not even fetched. By default what those of
                ``spec`` take, or 256 MiB.

        Raises:
            ValidationError: an argument is out of range.
            QueryError: nobody could be asked in all that time.
            StorageError: there is no room for a temporary file.
        """
        expected = Expected(round=checked_round(round), spec=spec, max_bytes=max_bytes)
        wanted = _peers(members)
        if wanted is not None and not wanted:
            raise ValidationError("name at least one member, or none at all (members=None) to take everybody's")
        most = MAX_NAMES if wanted is None else len(wanted)
        if minimum is not None and not 1 <= number_of("minimum", minimum) <= most:
            raise ValidationError(f"minimum is at least 1, and at most the number of members, not {minimum}")
        gathering = Gathering[PeerId](expected, lambda found: found.publisher, wanted, enough=minimum)
        self._bring(gathering, expected, lambda: gathering.sought, timeout)
        when = "before there were enough others" if gathering.is_done else f"within {timeout:g} s"
        return collected(gathering, expected.round, wanted, when)

    def fetch(
        self,
        round: SupportsIndex,  # noqa: A002 - what everybody calls it
        op_ids: Collection[OpId],
        *,
        timeout: float = 60.0,
        members: Collection[PeerId | str] | None = None,
        spec: Spec | None = None,
        max_bytes: int | None = None,
    ) -> dict[OpId, Gradient]:
        """The gradients that the outcome of a round names, as soon as all have come or it is clear that some cannot.

        Args:
            members: among whose they are; looking at nobody else's is quicker.
            timeout, spec, max_bytes: as for :meth:`collect`.

        Returns:
            those that have come and can be used.

        Raises:
            as :meth:`collect`.
        """
        expected = Expected(round=checked_round(round), spec=spec, max_bytes=max_bytes)
        publishers = _peers(members)
        gathering = Gathering[OpId](expected, lambda found: found.op_id, op_ids)
        self._bring(gathering, expected, lambda: publishers, timeout)
        return gathering.gradients

    def _put(
        self, announcement: Announcement, value: bytes, ttl: float | None, timeout: float | None, wait: bool
    ) -> PutReceipt | Future[PutReceipt]:
        ends_at_s = capability_ends_at_s(self._capability, time.time()) if ttl is None else math.inf

        async def put(dht: PrimeDHT) -> PutReceipt:
            ttl_s = min(self._ttl_s, dht.config.limits.max_ttl_s) if ttl is None else ttl
            is_cut_short = ttl is None and ends_at_s - time.time() < ttl_s
            return await dht.put(
                gradient_key(announcement.round, self._group, self._run),
                value,
                subkey=subkey_of(announcement, value),
                ttl=None if is_cut_short else ttl_s,
                expires_at=ends_at_s if is_cut_short else None,
                metadata=announcement.metadata(),
                content_type=CONTENT_TYPE,
                capability=self._capability,
            )

        return self._dht.call(put, timeout=timeout, wait=wait)

    def _bring(
        self,
        gathering: Gathering[Name],
        expected: Expected,
        publishers: Callable[[], Collection[PeerId] | None],
        timeout: float,
    ) -> None:
        timeout = checked_timeout(timeout)
        key = gradient_key(expected.round, self._group, self._run)
        until_s = time.monotonic() + timeout

        async def work(dht: PrimeDHT) -> None:
            left_s = max(0.0, until_s - time.monotonic())
            await bring(gathering, _Swarm(dht, key), expected, publishers, timeout_s=left_s)

        self._dht.call(_joined, timeout=timeout)  # in a forked child that may take long
        self._dht.call(work)  # which ends by itself, with what has come


async def _joined(_: PrimeDHT) -> None:
    """There is a node."""


@dataclass(frozen=True, slots=True)
class _Swarm:
    """A round's gradients in a swarm, for a node of it."""

    dht: PrimeDHT
    key: Key

    async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
        return await self.dht.get_all(self.key, publishers=publishers, cursor=cursor)

    async def fetch(self, found: Found, path: Path, tell: Callable[[int], None]) -> None:
        await self.dht.blobs.resolve(found, to=path, progress=lambda progress: tell(progress.done_bytes))


def _codec_of(codec: str | Codec | ErrorFeedback) -> Codec:
    if isinstance(codec, ErrorFeedback):
        return codec.codec
    if not isinstance(codec, str | Codec):
        raise ValidationError(f"a codec is a name, a Codec or an ErrorFeedback, not {type(codec).__name__}")
    return codec_named(codec) if isinstance(codec, str) else codec


def _take_back_if_failed(feedback: ErrorFeedback, value: bytes, done: Future[PutReceipt]) -> None:
    if done.cancelled() or done.exception() is not None:
        feedback.take_back(value)


def _weight(given: SupportsFloat | str) -> float:
    try:
        return float("" if isinstance(given, str) else given)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValidationError(
            f"the weight of a gradient is a number above 0, and at most 2**53, not {type(given).__name__}"
        ) from error


def _peers(members: Collection[PeerId | str] | None) -> frozenset[PeerId] | None:
    peers = peer_ids_of("members", members)
    return None if peers is None else frozenset(peers)
