"""Watching the rounds of a group, through a client that has what it is given. What proves an outcome is simplified."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import cast

import pytest

from prime_dht import BlobError, Found, FoundPage, LearningDHT, ValidationError
from prime_dht.entries import BlobRef
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.ml import watching
from prime_dht.ml.agreement import Commit, Members
from prime_dht.ml.agreement.codec import MAX_COMMIT_BYTES
from prime_dht.ml.rounds.posts import COMMIT, round_key
from prime_dht.ml.watching import FURTHEST_AHEAD, ROUNDS_AHEAD, Commits, further_ahead

GROUP = bytes(32)
FIRST, SECOND = PeerId(b"member 1"), PeerId(b"member 2")
NEVER_COMES = b"nobody has it"


def proof(round_number: int) -> bytes:
    return b"outcome of %d" % round_number


@pytest.fixture(autouse=True)
def _simple_proofs(monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(commit: bytes, *, round_number: int, **_: object) -> Commit:
        if commit != proof(round_number):
            raise ValidationError("it proves nothing")
        return cast("Commit", SimpleNamespace(outcome=SimpleNamespace(round_number=round_number)))

    monkeypatch.setattr(watching, "verify_commit", verify)


class Client:
    """Has outcomes by round and member, and counts what it is asked. Those in ``blobs_of`` are blobs."""

    def __init__(self, outcomes: Mapping[tuple[int, PeerId], bytes], blobs_of: Collection[PeerId] = ()) -> None:
        self.outcomes = dict(outcomes)
        self.blobs_of = blobs_of
        self.blob_bytes = 100_000
        self.fetched: list[bytes] = []
        self.looked_at: list[Key] = []

    @property
    def blobs(self) -> Client:
        return self

    def call(self, _: Callable[..., Awaitable[str]]) -> str:
        return "prime"

    def pages(self, key: Key, *, subkeys: Collection[bytes], publishers: Collection[PeerId]) -> Iterator[FoundPage]:
        assert list(subkeys) == [COMMIT]
        assert len(publishers) <= 256, "more cannot be asked for at once"
        self.looked_at.append(key)
        for (number, member), value in self.outcomes.items():
            if round_key(GROUP, number) == key and member in publishers:
                yield FoundPage((self._found(key, number, member, value),))

    def fetch(self, found: Found, *, timeout: float) -> bytes:
        assert found.blob is not None
        self.fetched.append(found.blob.cid)
        if found.blob.cid == NEVER_COMES:
            raise BlobError("nobody has it")
        return found.blob.cid

    def _found(self, key: Key, number: int, member: PeerId, value: bytes) -> Found:
        is_blob = member in self.blobs_of
        return Found(
            key=key,
            subkey=COMMIT,
            value=b"" if is_blob else value,
            blob=BlobRef(value, self.blob_bytes, "size-1048576") if is_blob else None,
            publisher=member,
            op_id=OpId(member + b"%d" % number),
            created_at_us=TimestampUs(0),
            expires_at_us=TimestampUs(1),
            content_type="",
            metadata={},
            envelope=b"",
            answered=2,
        )


class Watcher:
    """Looks at rounds, and notes what it is told."""

    def __init__(self, *, members: Collection[PeerId] = (FIRST, SECOND)) -> None:
        self.told: list[int] = []
        self._commits = Commits(
            group=GROUP,
            members=Members.equal(members),
            following=0,
            tell=lambda commit: self.told.append(commit.outcome.round_number),
        )

    def look(self, client: Client) -> list[int]:
        """All that it was told up to now."""
        self._commits.look(cast("LearningDHT", client))
        return self.told


def test_an_outcome_that_comes_with_its_entry_is_taken_before_any_blob_is_fetched() -> None:
    client = Client({(0, FIRST): NEVER_COMES, (0, SECOND): proof(0)}, blobs_of=[FIRST])
    assert Watcher().look(client) == [0]
    assert client.fetched == []


def test_an_outcome_that_is_a_blob_is_fetched_and_one_that_is_too_large_is_not() -> None:
    client = Client({(0, FIRST): NEVER_COMES, (0, SECOND): proof(0)}, blobs_of=[FIRST, SECOND])
    assert Watcher().look(client) == [0]
    client.blob_bytes, client.fetched = MAX_COMMIT_BYTES + 1, []
    assert Watcher().look(client) == []
    assert client.fetched == []


@pytest.mark.parametrize("value", [NEVER_COMES, b"something else"])
def test_a_blob_that_does_not_come_or_proves_nothing_is_tried_ever_more_seldom(value: bytes) -> None:
    client, watcher = Client({(0, FIRST): value}, blobs_of=[FIRST]), Watcher()
    tried_by_look = []
    for _ in range(16):
        watcher.look(client)
        tried_by_look.append(len(client.fetched))
    assert tried_by_look == [1] * 2 + [2] * 4 + [3] * 8 + [4] * 2
    client.outcomes[1, FIRST] = proof(1)
    assert watcher.look(client) == [1]


@pytest.mark.parametrize("failed", [3, 4, 100, 1000])
def test_after_any_number_of_rounds_that_failed_those_that_are_committed_are_told_in_order(failed: int) -> None:
    committed = [0, failed + 1, failed + 2, failed + 5]
    client, watcher = Client({}), Watcher()
    client.outcomes[0, FIRST] = proof(0)
    assert watcher.look(client) == [0]
    client.outcomes |= {(number, FIRST): proof(number) for number in committed}
    looks = 0
    while watcher.look(client) != committed:
        looks += 1
        assert looks <= FURTHEST_AHEAD
    client.outcomes[failed + 6, FIRST] = proof(failed + 6)
    assert watcher.look(client) == [*committed, failed + 6]


def test_a_look_in_vain_asks_for_few_rounds_however_many_were_in_vain() -> None:
    client, watcher = Client({}), Watcher()
    for _ in range(2000):
        before = len(client.looked_at)
        watcher.look(client)
        assert len(client.looked_at) - before <= ROUNDS_AHEAD + 8


def test_every_round_ahead_is_looked_at_sooner_or_later() -> None:
    asked_for = {ahead for looks in range(2 * FURTHEST_AHEAD) for ahead in further_ahead(looks)}
    assert asked_for == set(range(ROUNDS_AHEAD, FURTHEST_AHEAD))


def test_rounds_of_more_members_than_can_be_asked_for_at_once_are_told() -> None:
    members = [PeerId(b"member %03d" % number) for number in range(600)]
    client = Client({(0, members[-1]): proof(0)})
    assert Watcher(members=members).look(client) == [0]
