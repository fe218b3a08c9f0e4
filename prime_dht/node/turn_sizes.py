"""How much a node puts into a turn of a round with each peer: less where a whole turn was too much for the path.

Nothing of a turn is of use before all of it has come, and each has a deadline. Over a path on which a full one does not
come in time nothing would ever be moved. So after a turn that stayed without an answer the next rounds with that peer
have smaller ones. They grow again, in the middle of a round too, when they are answered soon.
"""

from __future__ import annotations

from collections import OrderedDict

from prime_dht.ids import PeerId
from prime_dht.sync.limits import TURN_BYTES

LEAST_TURN_BYTES = 32 << 10
"""Which one entry may exceed."""

LONG_S, SOON_S = 20.0, 10.0
"""A turn is too large if nothing came for so long after it, and may be larger if the answer came so soon."""

PEERS_NOTED = 1000
"""Those with a slow path, of which is kept how slow it is; of more, the one noted first is forgotten."""


class TurnSizes:
    """See the module.

    >>> sizes, peer = TurnSizes(), PeerId(b"peer")
    >>> sizes.unanswered(peer, 786_000, 50.0)
    >>> sizes.of(peer)
    196500
    >>> sizes.answered(peer, 196_000, 4.0)
    >>> sizes.of(peer)
    393000
    """

    def __init__(self) -> None:
        self._bytes: OrderedDict[PeerId, int] = OrderedDict()

    def of(self, peer: PeerId) -> int:
        """What goes into a turn for a peer."""
        return self._bytes.get(peer, TURN_BYTES)

    def answered(self, peer: PeerId, turn_bytes: int, took_s: float) -> None:
        """A peer has answered a turn of this size, so long after it was begun to be sent."""
        if peer not in self._bytes or took_s > SOON_S or 2 * turn_bytes < self._bytes[peer]:
            return
        self._bytes[peer] *= 2
        if self._bytes[peer] >= TURN_BYTES:
            del self._bytes[peer]

    def unanswered(self, peer: PeerId, turn_bytes: int, took_s: float) -> None:
        """A round broke off this long after a turn of this size was begun to be sent, which had no answer."""
        if took_s < LONG_S or turn_bytes <= LEAST_TURN_BYTES:
            return
        self._bytes[peer] = max(LEAST_TURN_BYTES, min(turn_bytes, self.of(peer)) // 4)
        if len(self._bytes) > PEERS_NOTED:
            self._bytes.popitem(last=False)
