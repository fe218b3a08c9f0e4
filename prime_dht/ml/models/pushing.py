"""Pushing a version: its weights, and once they are acknowledged, what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prime_dht.blobs.chunking import TensorChunker
from prime_dht.blobs.cid import Cid
from prime_dht.errors import QueryError, StorageError, ValidationError
from prime_dht.ids import US_PER_S
from prime_dht.ml.models.listing import versions_of
from prime_dht.ml.models.outgoing import Outgoing
from prime_dht.ml.models.version import (
    ModelVersion,
    description_key,
    description_of,
    next_number,
    subkey_of,
    version_in,
    weights_key,
)
from prime_dht.storage.blocks_status import NoRoomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prime_dht.node import PrimeDHT
    from prime_dht.node.blobs.progress import BlobProgress
    from prime_dht.node.results import PutReceipt

SLOWEST_BYTES_PER_S = 256 << 10
"""At which weights may go to the replicas before a push gives up."""


async def push(
    dht: PrimeDHT,
    model_id: str,
    outgoing: Outgoing,
    *,
    taken: dict[str, int],
    metadata: Mapping[str, object],
    architecture: str,
    ttl: float | None,
    subkey: bytes | None = None,
    progress: Callable[[BlobProgress], None] | None = None,
) -> ModelVersion:
    """Push the next version of a model. See :meth:`prime_dht.ml.client.LearningDHT.push_model`.

    Args:
        taken: by model id, the greatest number that this client has used; this push notes its own, unless it fails. A
            listing need not show yet what another thread is pushing.
        ttl: seconds; by default as long as the network allows.
        subkey: under which to put its entries, in place of what is there; that of its number by default.
    """
    limits = dht.config.limits
    ttl = limits.max_ttl_s if ttl is None else ttl
    seen = await versions_of(dht, model_id)
    number = next_number(seen, own=dht.peer_id, taken=taken.get(model_id, 0))
    subkey = subkey_of(number) if subkey is None else subkey
    what = f"model {model_id!r}, version {number}"

    def describe(cid: Cid) -> bytes:
        return description_of(
            number=number,
            cid=cid,
            size_bytes=outgoing.size_bytes,
            header_bytes=outgoing.header_bytes,
            parameter_count=outgoing.parameter_count,
            architecture=architecture,
            model_created_at=min((one.created_at for one in seen), default=None),
            metadata=metadata,
            max_bytes=limits.max_inline_bytes,
        )

    describe(Cid.of_raw(b""))  # every CID is as long: what is wrong with the rest shows before the weights are sent
    with _taking(taken, model_id, number):
        small = await outgoing.read() if outgoing.size_bytes <= limits.max_inline_bytes else None
        put_now = partial(
            dht.put,
            weights_key(model_id),
            subkey=subkey,
            ttl=ttl,
            metadata={"name": f"{model_id.rpartition('/')[2]}-{number}.safetensors"},
            chunker=TensorChunker.name,
            wait_s=dht.config.blob_wait_s + outgoing.size_bytes / SLOWEST_BYTES_PER_S,
            progress=None if progress is None else lambda told: progress(replace(told, size_bytes=outgoing.size_bytes)),
        )
        try:
            put_weights = await put_now(outgoing.pieces() if small is None else small)
        except NoRoomError as error:
            raise StorageError(
                f"the weights of {what}: {error}; without a data directory they would be in memory: connect with "
                "data_dir, or with a larger max_blocks_bytes"
            ) from error
        _check(put_weights, f"the weights of {what}")
        if (put_weights.blob.size if put_weights.blob else len(small or b"")) != outgoing.size_bytes:
            raise ValidationError(f"the weights of {what}: the file was written to while it was sent")
        description = describe(Cid.from_bytes(put_weights.blob.cid) if put_weights.blob else Cid.of_raw(small or b""))
        put_description = await dht.put(
            description_key(model_id),
            description,
            subkey=subkey,
            expires_at=put_weights.expires_at_us / US_PER_S,  # however long the weights took: not after them
            content_type="application/json",
        )
        _check(put_description, what)
    return version_in(
        model_id,
        description,
        publisher=dht.peer_id,
        subkey=subkey,
        updated_at_us=put_description.created_at_us,
        expires_at_us=put_description.expires_at_us,
    )


@contextmanager
def _taking(taken: dict[str, int], model_id: str, number: int) -> Iterator[None]:
    """Note that a number is used; unless the push fails, for then replicas are to have the next one in place of it."""
    before = taken.get(model_id, 0)
    taken[model_id] = number
    try:
        yield
    except BaseException:  # passed on, trio.Cancelled as well
        if taken[model_id] == number:
            taken[model_id] = before
        raise


def _check(receipt: PutReceipt, what: str) -> None:
    """Check that an entry outlives any minority of its replicas, and is what a reader sees.

    Raises:
        QueryError: it does not, or is not.
    """
    if receipt.superseded or not receipt.acknowledged:
        raise QueryError(
            f"{what}: not acknowledged: {receipt.warning}; it needs {receipt.needed}. Push again: what has arrived is "
            "not sent again"
        )
