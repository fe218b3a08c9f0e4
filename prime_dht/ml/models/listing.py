"""Which versions of a model there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import peer_text
from prime_dht.ml.models.version import ModelVersion, checked_id, description_key, version_in
from prime_dht.node.arguments import peer_id_of
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht.node import PrimeDHT
    from prime_dht.node.arguments import PeerLike
    from prime_dht.node.results import Found

NAMED_AT_MOST = 20
"""Versions that an error names, the last of them."""


class UnknownModelError(QueryError):
    """Nobody has pushed such a model, or such a version of it."""


async def versions_of(dht: PrimeDHT, model_id: str, publisher: PeerLike | None = None) -> list[ModelVersion]:
    """The versions of a model, oldest first: by number, and of one number by when they were pushed.

    Raises:
        ValidationError: it is no model id, or no peer id.
        QueryError: nobody could be asked.
    """
    key = description_key(checked_id(model_id))
    publishers = None if publisher is None else (publisher,)
    versions: list[ModelVersion] = []
    slots = 0
    cursor: bytes | None = b""
    while cursor is not None and slots < dht.config.limits.max_slots_per_key:  # honest replicas have no more
        page = await dht.get_all(key, publishers=publishers, cursor=cursor)
        versions += _described(model_id, page)
        slots += max(len(page), 1)  # of a page of what was deleted nothing is told
        cursor = page.next_cursor
    return sorted(versions, key=lambda one: (one.version, one.updated_at))


async def find_version(
    dht: PrimeDHT, model_id: str, number: int | None, publisher: PeerLike | None = None
) -> ModelVersion:
    """The version of this number, or the last; of several the newest.

    Raises:
        UnknownModelError: there is none; it says what there is.
        ValidationError: the number is none.
        ValidationError, QueryError: as :func:`versions_of` does.
    """
    if number is not None:
        number_of("version", number)  # text is no version's, but looks in an error as if it were
    versions = await versions_of(dht, model_id, publisher)
    wanted = [one for one in versions if number is None or one.version == number]
    if not wanted:
        raise _unknown(model_id, number, publisher, versions)
    return wanted[-1]


def _described(model_id: str, found: Iterable[Found]) -> Iterable[ModelVersion]:
    for one in found:
        try:
            yield version_in(
                model_id,
                one.value,
                publisher=one.publisher,
                subkey=one.subkey,
                updated_at_us=one.created_at_us,
                expires_at_us=one.expires_at_us,
            )
        except ValidationError:
            continue  # whoever may write here may write anything; it takes nothing away from the others


def _unknown(
    model_id: str, number: int | None, publisher: PeerLike | None, versions: Sequence[ModelVersion]
) -> UnknownModelError:
    by = "" if publisher is None else f" by {peer_text(peer_id_of(publisher))}"
    if not versions:
        return UnknownModelError(f"there is no model {model_id!r}{by}: nothing stands at {description_key(model_id)!r}")
    numbers = sorted({one.version for one in versions})
    named = ", ".join(map(str, numbers[-NAMED_AT_MOST:]))
    return UnknownModelError(
        f"there is no version {number} of model {model_id!r}{by}; there are {len(numbers)}: "
        f"{'…, ' if len(numbers) > NAMED_AT_MOST else ''}{named}"
    )
