"""Places for streams that are served: so many in all, and a few for one peer.

When all are taken, a peer that has none gets one of whoever has most, whose latest stream is *displaced*: reset, as if
its connection were lost. Nobody is charged. So whoever takes many places keeps nobody out, and strangers need as many
ids as there are places, with a connection each.
"""

from __future__ import annotations

import logging
from collections import Counter

import trio

from prime_dht.ids import PeerId, short

logger = logging.getLogger(__name__)


class Places:
    """Who is served.

    Args:
        of_peer: places that one peer may have.
        in_all: places that there are.
    """

    def __init__(self, *, of_peer: int, in_all: int) -> None:
        self._of_peer = of_peer
        self._in_all = in_all
        self._served: dict[trio.CancelScope, PeerId] = {}

    def __len__(self) -> int:
        return len(self._served)

    def take(self, peer: PeerId) -> trio.CancelScope | None:
        """A place for a stream of a peer, if need be that of another; ``None`` if it gets none.

        Returns:
            what the stream is to be served in. It is cancelled when the stream is displaced. :meth:`leave` it.
        """
        places = Counter(self._served.values())
        if places[peer] >= self._of_peer:
            return None
        if len(self._served) >= self._in_all and (places[peer] or not self._displace_one(places)):
            return None
        scope = trio.CancelScope()
        self._served[scope] = peer
        return scope

    def leave(self, scope: trio.CancelScope) -> None:
        """The stream is over, displaced or not."""
        self._served.pop(scope, None)

    def cancel_all(self) -> None:
        """End all that is served."""
        for scope in self._served:
            scope.cancel()

    def _displace_one(self, places: Counter[PeerId]) -> bool:
        ((peer, most),) = places.most_common(1)
        if most == 1:
            return False
        scope = next(scope for scope in reversed(self._served) if self._served[scope] == peer)
        logger.debug("one of %d streams of peer %s gives way to a newcomer", most, short(peer))
        del self._served[scope]
        scope.cancel()
        return True
