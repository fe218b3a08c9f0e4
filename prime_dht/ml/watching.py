"""What a service looks for: versions of models, and rounds that are committed.

A *look* asks the swarm once, and tells what is new since the look before. It raises a
:class:`~prime_dht.errors.PrimeDHTError` if nobody could be asked; the next one makes up for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prime_dht.errors import BlobError, ValidationError
from prime_dht.ml.agreement import Commit, Members
from prime_dht.ml.agreement.codec import MAX_COMMIT_BYTES
from prime_dht.ml.rounds import verify_commit
from prime_dht.ml.rounds.posts import COMMIT, round_key

if TYPE_CHECKING:
    from prime_dht import Cid, Found, LearningDHT, ModelVersion, PrimeDHT
    from prime_dht.ids import PeerId

ROUNDS_AHEAD = 4
"""A round that fails is passed over when one of the next so many, itself among them, is committed."""


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
    """

    group: bytes
    members: Members
    following: int
    tell: Callable[[Commit], None]

    def look(self, dht: LearningDHT) -> None:
        """Tell what is new."""
        network_id = dht.call(_network_id)
        ahead = 0
        while ahead < ROUNDS_AHEAD:
            commit = self._commit_of(dht, self.following + ahead, network_id)
            if commit is None:
                ahead += 1
            else:
                self.following, ahead = commit.outcome.round_number + 1, 0
                self.tell(commit)

    def _commit_of(self, dht: LearningDHT, round_number: int, network_id: str) -> Commit | None:
        """The outcome of a round, if a member has put one that is proved."""
        key = round_key(self.group, round_number)
        for page in dht.pages(key, subkeys=[COMMIT], publishers=list(self.members.weights)):
            for found in page:
                with suppress(ValidationError, BlobError):  # this member may lie; another one may not
                    return verify_commit(
                        _value_of(dht, found),
                        members=self.members,
                        group=self.group,
                        network_id=network_id,
                        round_number=round_number,
                    )
        return None


def _value_of(dht: LearningDHT, found: Found) -> bytes:
    if found.blob is None:
        return found.value
    if found.blob.size > MAX_COMMIT_BYTES:
        raise ValidationError(f"an outcome takes at most {MAX_COMMIT_BYTES} bytes, not {found.blob.size}")
    fetched = dht.get(found.key, subkey=found.subkey, publisher=found.publisher)
    return b"" if fetched is None else fetched.value


async def _network_id(dht: PrimeDHT) -> str:
    return dht.config.network_id
