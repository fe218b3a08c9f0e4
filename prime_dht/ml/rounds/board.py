"""The board: a round's key in a swarm, read and written by a thread that waits.

Reading never fails for want of peers: then nothing was read, and it is tried again. Values that are blobs, as the
proposals and commits of large groups are, are fetched if they are needed, each read being a turn of
:mod:`~prime_dht.ml.rounds.fetching`.

Values that are not needed are not held. Of each publisher's blobs :data:`HELD_OF_EACH_BYTES` are held, and
:data:`FETCHED_OF_EACH` looked for, at most.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from prime_dht.errors import QueryError
from prime_dht.ids import Key, OpId, PeerId
from prime_dht.ml.agreement.codec import MAX_COMMIT_BYTES
from prime_dht.ml.gradients.announcement import capability_ends_at_s
from prime_dht.ml.rounds.fetching import Fetching
from prime_dht.ml.rounds.posts import Post

if TYPE_CHECKING:
    from prime_dht.blocking import BlockingDHT
    from prime_dht.node.results import Found

MAX_PAGES = 512
"""Of one read: more than a full key takes, each page having up to 1 MiB."""

HELD_OF_EACH_BYTES = 2 * MAX_COMMIT_BYTES
FETCHED_OF_EACH = 16
"""More than an outcome, and what a good member proposes in the views that count."""

NeedsValue = Callable[[PeerId, bytes], bool]
"""Whether the value of a publisher's entry with a subkey is looked at, and so is to be there."""


def entries_under(dht: BlockingDHT, key: Key, *, timeout_s: float) -> Iterator[Found]:
    """All that lies under a key, as it comes; blobs unfetched.

    Raises:
        QueryError: nobody could be asked.
    """
    for page in islice(dht.pages(key, timeout=timeout_s), MAX_PAGES):
        yield from page


class Board:
    """See the module.

    Args:
        capability: that this member was given.
        ttl_s: how long what is put is to live; less if the capability ends before.

    Attributes:
        trouble: why the last read or put failed, if one has.
    """

    def __init__(self, dht: BlockingDHT, key: Key, *, capability: bytes, ttl_s: float) -> None:
        self._dht = dht
        self._key = key
        self._capability = capability
        self._ttl_s = ttl_s
        self._values: dict[OpId, bytes] = {}
        self._fetching = Fetching(dht)
        self.trouble = ""

    def read(self, needs_value: NeedsValue, *, timeout_s: float) -> list[Post] | None:
        """All that lies under the key; ``None`` if it could not be read."""
        posts: list[Post] = []
        blobs: dict[int, Found] = {}
        try:
            for one in entries_under(self._dht, self._key, timeout_s=timeout_s):
                is_needed = needs_value(one.publisher, one.subkey)
                value = one.value if is_needed and one.blob is None else None
                if is_needed and one.blob is not None:
                    blobs[len(posts)] = one
                posts.append(Post(publisher=one.publisher, subkey=one.subkey, value=value, envelope=one.envelope))
        except QueryError as error:
            self.trouble = str(error)
            return None
        self._fetch(list(blobs.values()))
        for place, one in blobs.items():
            posts[place] = replace(posts[place], value=self._values.get(one.op_id))
        return posts

    def put(self, subkey: bytes, value: bytes, *, timeout_s: float) -> bool:
        """Put a value; whether that was acknowledged.

        Raises:
            ValidationError: the capability has ended.
        """
        now_s = time.time()
        try:
            receipt = self._dht.put(
                self._key,
                value,
                subkey=subkey,
                expires_at=min(now_s + self._ttl_s, capability_ends_at_s(self._capability, now_s)),
                capability=self._capability,
                timeout=timeout_s,
            )
        except QueryError as error:
            self.trouble = str(error)
            return False
        self.trouble = receipt.warning or ""
        return receipt.acknowledged

    def _fetch(self, blobs: list[Found]) -> None:
        """Fetch values that are not here yet, and forget those that are not needed any more."""
        needed = {one.op_id for one in blobs}
        self._values = {op_id: value for op_id, value in self._values.items() if op_id in needed}
        wanted = [one for one in _of_each(blobs) if one.op_id not in self._values]
        for one, value in self._fetching.turn(wanted):
            self._values[one.op_id] = value


def _of_each(blobs: Iterable[Found]) -> Iterator[Found]:
    """Those that are looked for: of each publisher the first few, and none that is too large."""
    held_bytes, count = Counter[PeerId](), Counter[PeerId]()
    for one in blobs:
        size = 0 if one.blob is None else one.blob.size
        fits = size <= MAX_COMMIT_BYTES and held_bytes[one.publisher] + size <= HELD_OF_EACH_BYTES
        if fits and count[one.publisher] < FETCHED_OF_EACH:
            held_bytes[one.publisher] += size
            count[one.publisher] += 1
            yield one
