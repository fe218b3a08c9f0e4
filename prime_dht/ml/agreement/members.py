"""The members of a round: how much each one's vote counts, and whose turn it is to propose.

Agreement holds while the *bad* members, those who crash, lag, lie or say different things to different others, have
less than a third of all weight. A *quorum* has more than two thirds: two of them share a good member, and the good
members alone are one. A *third* has at least a third: one of them is good.

>>> members = Members({PeerId(b"a"): 1, PeerId(b"b"): 1, PeerId(b"c"): 1, PeerId(b"d"): 1})
>>> [members.is_quorum(ids) for ids in ([b"a", b"b"], [b"a", b"b", b"c"])]
[False, True]
>>> [members.is_third(ids) for ids in ([b"a"], [b"a", b"b"])]
[False, True]
>>> [members.proposer(0, view) for view in range(5)]
[b'a', b'b', b'c', b'd', b'a']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId

MAX_MEMBERS = 1024


class Members:
    """The weight of each member's vote; whole numbers above 0. All members must know the same.

    Attributes:
        weights: of each member, in the order of members.
    """

    def __init__(self, weights: Mapping[PeerId, int]) -> None:
        if not 1 <= len(weights) <= MAX_MEMBERS:
            raise ValidationError(f"a round has 1 to {MAX_MEMBERS} members, not {len(weights)}")
        if not all(type(weight) is int and weight > 0 for weight in weights.values()):
            raise ValidationError("the weight of a member's vote is a whole number above 0")
        self.weights: Mapping[PeerId, int] = dict(sorted(weights.items()))
        self._whole = sum(self.weights.values())
        self._order = tuple(self.weights)

    @classmethod
    def equal(cls, members: Iterable[PeerId]) -> Members:
        """Members with one vote each."""
        return cls(dict.fromkeys(members, 1))

    def __contains__(self, member: object) -> bool:
        return member in self.weights

    def __len__(self) -> int:
        return len(self.weights)

    def is_quorum(self, members: Iterable[PeerId]) -> bool:
        """Whether distinct members have more than two thirds of all weight."""
        return 3 * self._weight_of(members) > 2 * self._whole

    def is_third(self, members: Iterable[PeerId]) -> bool:
        """Whether distinct members have at least a third of all weight, which the bad ones do not."""
        return 3 * self._weight_of(members) >= self._whole

    def fewest(self) -> int:
        """How many members are a quorum at least.

        >>> [Members.equal([PeerId(bytes([i])) for i in range(n)]).fewest() for n in range(1, 8)]
        [1, 2, 3, 3, 4, 5, 5]
        """
        heaviest = sorted(self.weights, key=self.weights.__getitem__, reverse=True)
        return next(n for n in range(1, len(heaviest) + 1) if self.is_quorum(heaviest[:n]))

    def proposer(self, round_number: int, view: int) -> PeerId:
        """Whose turn it is. Weight counts for votes, not for turns: all have their turn, one after the other."""
        return self._order[(round_number + view) % len(self._order)]

    def _weight_of(self, members: Iterable[PeerId]) -> int:
        return sum(self.weights[member] for member in members)
