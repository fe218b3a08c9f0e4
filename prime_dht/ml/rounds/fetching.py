"""Fetching the values of entries that are blobs, of which anybody may have promised more than they keep.

Entries are looked at again and again; each time is a *turn*. In a turn every value that is wanted, and not at rest, is
tried once; those whose publisher's failed least come first, and after :data:`FETCHING_S` the rest is left for the next
turn. So whoever names something else that is not there for every turn keeps nobody's values waiting but its own. The
first try lasts :data:`FETCH_S`, and each later one of the same value as much longer, for nothing stays of what has come
over a slow link. A value that failed rests, each time for twice as many turns. So what somebody names and withholds
delays others a few times, and then hardly ever.

Nothing is fetched whose size is not what its entry says.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from prime_dht.errors import BlobError, QueryError, ValidationError

if TYPE_CHECKING:
    from prime_dht.blocking import BlockingDHT
    from prime_dht.ids import OpId, PeerId
    from prime_dht.node.results import Found

FETCHING_S = 5.0
FETCH_S = 1.0
_LONGEST_REST = 6
"""After so many failures, or more, a blob is left alone for 2**6 turns, and then tried for 7 s."""


class Fetching:
    """See the module. Of what the last turn did not want, only how many of each publisher failed is remembered."""

    def __init__(self, dht: BlockingDHT) -> None:
        self._dht = dht
        self._failures: Counter[OpId] = Counter()
        self._failed_of: Counter[PeerId] = Counter()
        self._rests: dict[OpId, int] = {}
        """In how many turns a blob is left alone."""

    def turn(self, wanted: Collection[Found]) -> Iterator[tuple[Found, bytes]]:
        """Values of entries that are blobs, as they come; forget all that is not wanted any more."""
        names = {one.op_id for one in wanted}
        self._failures = Counter({op_id: count for op_id, count in self._failures.items() if op_id in names})
        self._rests = {op_id: left - 1 for op_id, left in self._rests.items() if op_id in names and left > 1}
        until_s = time.monotonic() + FETCHING_S
        for one in sorted(wanted, key=lambda one: (self._failed_of[one.publisher], self._failures[one.op_id])):
            if one.op_id in self._rests:
                continue
            if time.monotonic() > until_s:
                return
            fetch_s = FETCH_S * (1 + min(self._failures[one.op_id], _LONGEST_REST))
            try:
                # The entry itself, not its CID: so what has another size than it says is refused.
                value = self._dht.blobs.fetch(one, timeout=fetch_s)
            except (QueryError, BlobError, ValidationError):  # the last: what it names is no CID
                self.note_failure(one)
            else:
                yield one, value

    def note_failure(self, one: Found) -> None:
        """A value did not come, or is not what it should be: let it rest."""
        self._failures[one.op_id] += 1
        self._failed_of[one.publisher] += 1
        self._rests[one.op_id] = 1 << min(self._failures[one.op_id], _LONGEST_REST)
