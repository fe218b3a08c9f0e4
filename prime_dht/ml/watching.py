"""What a service looks for: versions of models, and rounds that are committed.

A *look* asks the swarm once, and tells what is new since the look before. It raises a
:class:`~prime_dht.errors.PrimeDHTError` if nobody could be asked; the next one makes up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prime_dht.errors import ValidationError
from prime_dht.ml.agreement import Commit, Members
from prime_dht.ml.agreement.codec import MAX_COMMIT_BYTES
from prime_dht.ml.gradients.bringing import PUBLISHERS_AT_ONCE
from prime_dht.ml.rounds import verify_commit
from prime_dht.ml.rounds.fetching import Fetching
from prime_dht.ml.rounds.posts import COMMIT, round_key

if TYPE_CHECKING:
    from prime_dht import Cid, Found, LearningDHT, ModelVersion, PrimeDHT
    from prime_dht.ids import Key, PeerId

ROUNDS_AHEAD = 4
"""At each look, so many rounds are asked for: one that fails is passed over when one of the next is committed."""

FURTHEST_AHEAD = 1024
"""A group whose rounds fail for a time has to be found again: after looks in vain, some rounds that are further ahead
are asked for as well, up to here (:func:`further_ahead`)."""


@dataclass(kw_only=True)
class Versions:
    """Looks at the versions of a model; the first look tells of the newest alone.

    Attributes:
        publisher: whose versions; ``None`` is anybody's.
        tell: called with each version that is new.
    """

    model_id: str
    publisher: PeerId | str | None
    tell: Callable[[ModelVersion], None]
    seen: frozenset[tuple[PeerId, int, Cid]] | None = None

    def look(self, dht: LearningDHT) -> None:
        """Tell what is new."""
        versions = dht.model_versions(self.model_id, publisher=self.publisher)
        names = {(version.publisher, version.version, version.cid): version for version in versions}
        new = versions[-1:] if self.seen is None else [names[name] for name in names if name not in self.seen]
        for version in new:
            self.tell(version)
        self.seen = frozenset(names)


@dataclass(kw_only=True)
class Commits:
    """Looks at the rounds of a group, in order.

    Attributes:
        group: its root.
        members: of the rounds; an outcome is one that more than two thirds of them have signed.
        following: the round to be committed next.
        tell: called with each outcome, and its proof.
        in_vain: so many looks have found nothing since one did.
    """

    group: bytes
    members: Members
    following: int
    tell: Callable[[Commit], None]
    in_vain: int = 0
    _fetching: dict[int, Fetching] = field(default_factory=dict)
    """By round; of those alone in which somebody's outcome is a blob, from the following round on."""

    def look(self, dht: LearningDHT) -> None:
        """Tell what is new."""
        network_id, first = dht.call(_network_id), self.following
        self._tell_until(dht, first, network_id)
        if self.following == first:
            for ahead in further_ahead(self.in_vain):
                if self._commit_of(dht, first + ahead, network_id) is not None:
                    self._tell_until(dht, first + ahead, network_id)
                    break
        self.in_vain = self.in_vain + 1 if self.following == first else 0
        self._fetching = {number: one for number, one in self._fetching.items() if number >= self.following}

    def _tell_until(self, dht: LearningDHT, last: int, network_id: str) -> None:
        """Tell of the rounds to a last one, and then of those near the last that was committed."""
        number = self.following
        while number <= last or number < self.following + ROUNDS_AHEAD:
            commit = self._commit_of(dht, number, network_id)
            number += 1
            if commit is not None:
                self.following = number
                self.tell(commit)

    def _commit_of(self, dht: LearningDHT, round_number: int, network_id: str) -> Commit | None:
        """The outcome of a round, if a member has put one that is proved; what comes with its entry is tried first."""

        def proved(value: bytes) -> Commit:
            return verify_commit(
                value, members=self.members, group=self.group, network_id=network_id, round_number=round_number
            )

        blobs: list[Found] = []
        for found in self._outcomes(dht, round_key(self.group, round_number)):
            if found.blob is None:
                with suppress(ValidationError):  # this member may lie; another one may not
                    return proved(found.value)
            elif found.blob.size <= MAX_COMMIT_BYTES:
                blobs.append(found)
        if not blobs:
            return None
        fetching = self._fetching.setdefault(round_number, Fetching(dht))
        for found, value in fetching.turn(blobs):
            try:
                return proved(value)
            except ValidationError:
                fetching.note_failure(found)
        return None

    def _outcomes(self, dht: LearningDHT, key: Key) -> Iterator[Found]:
        """What members have put as the outcome of a round; blobs unfetched."""
        members = list(self.members.weights)
        for start in range(0, len(members), PUBLISHERS_AT_ONCE):
            some = members[start : start + PUBLISHERS_AT_ONCE]
            for page in dht.pages(key, subkeys=[COMMIT], publishers=some):
                yield from page


def further_ahead(in_vain: int) -> list[int]:
    """How far ahead to look after so many looks in vain, beyond the first :data:`ROUNDS_AHEAD` rounds.

    One round of each octave, each time the next one; and the more octaves, the more looks were in vain. So soon every
    round to :data:`FURTHEST_AHEAD` is looked at now and then, the nearer ones more often, and a look stays short.

    >>> [further_ahead(looks) for looks in (0, 1, 2, 3, 4)]
    [[], [5], [6, 10], [7, 11], [4, 12, 20]]
    """
    octaves, start = [], ROUNDS_AHEAD
    while start < FURTHEST_AHEAD and start <= ROUNDS_AHEAD * in_vain:
        octaves.append(start + in_vain % start)
        start *= 2
    return octaves


async def _network_id(dht: PrimeDHT) -> str:
    return dht.config.network_id
