"""Rounds over a real swarm: three nodes in a process, and members who are clients in threads of this one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Semaphore
from typing import Any, cast

import numpy as np
import pytest
from libp2p.crypto.ed25519 import create_new_key_pair

from prime_dht import (
    BlobError,
    BlockingDHT,
    ConfigError,
    LocalProtocolError,
    PutReceipt,
    QueryError,
    StorageError,
    ValidationError,
    connect,
)
from prime_dht.entries import grant, root_of
from prime_dht.ids import US_PER_S
from prime_dht.ml.aggregation import FederatedAverage, TrimmedMean
from prime_dht.ml.agreement import NIL, Phase, Timeouts, Vote, subkey_of
from prime_dht.ml.codecs import ErrorFeedback, TopK
from prime_dht.ml.gradients import Gradients
from prime_dht.ml.rounds import RoundMember, members_of, verify_commit
from prime_dht.ml.rounds.member import Progress
from prime_dht.ml.rounds.posts import is_statement, round_key
from prime_dht.ml.tensors import Array, spec_of

TIMEOUTS = Timeouts(propose_us=2 * US_PER_S, vote_us=US_PER_S, growth_us=US_PER_S)
QUICK = Timeouts(propose_us=US_PER_S // 2, vote_us=US_PER_S // 4, growth_us=US_PER_S // 4)
ROOT_KEY = create_new_key_pair(bytes(31) + b"\x07")
GROUP = root_of(ROOT_KEY.public_key)


def gradient_of(number: int) -> dict[str, Array]:
    return {"weight": np.full((300, 100), number, np.float32), "bias": np.array(number, np.float32)}


SPEC = spec_of(gradient_of(0))


class Trainers:
    """Four clients with the capabilities of a group."""

    def __init__(self, clients: Sequence[BlockingDHT]) -> None:
        self.clients = clients
        ends_us = int((time.time() + 3600) * US_PER_S)
        self.capabilities = [
            grant(ROOT_KEY.private_key, member=one.peer_id, expires_at_us=ends_us, network_id="prime")
            for one in clients
        ]
        self.members = members_of(self.capabilities, group=GROUP, network_id="prime")

    def member(
        self,
        number: int,
        *,
        dht: object = None,
        bad: int = 1,
        collect_s: float = 2.0,
        timeouts: Timeouts = TIMEOUTS,
        progress: Progress = lambda _: None,
    ) -> RoundMember:
        return RoundMember(
            cast("BlockingDHT", dht or self.clients[number]),
            members=self.members,
            rule=TrimmedMean(),
            bad=bad,
            spec=SPEC,
            capability=self.capabilities[number],
            timeouts=timeouts,
            collect_s=collect_s,
            progress=progress,
        )


class Crash(Exception):
    """What ends a member in the middle of something."""


class CrashesAtPrecommit:
    """A client whose process ends just before it puts a precommit."""

    def __init__(self, dht: BlockingDHT) -> None:
        self._dht = dht

    def __getattr__(self, name: str) -> object:
        return getattr(self._dht, name)

    def put(self, key: bytes, value: bytes, *, subkey: bytes, **more: Any) -> PutReceipt:
        if subkey[0] == Phase.PRECOMMIT:
            raise Crash
        receipt: PutReceipt = self._dht.put(key, value, subkey=subkey, **more)
        return receipt


class WithoutBlobs:
    """A client that can have no blob, and has no room for one."""

    def __init__(self, dht: BlockingDHT) -> None:
        self._dht = dht

    def __getattr__(self, name: str) -> object:
        return getattr(self._dht, name)

    @property
    def blobs(self) -> WithoutBlobs:
        return self

    def fetch(self, *_: object, **__: object) -> bytes:
        raise BlobError("nobody has it")

    def add(self, *_: object, **__: object) -> PutReceipt:
        raise StorageError("the disk is full")


@pytest.fixture(scope="module")
def trainers(swarm: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainers]:
    with ExitStack() as stack:
        directories = [tmp_path_factory.mktemp("member") for _ in range(4)]
        yield Trainers([stack.enter_context(connect(swarm[0], data_dir=directory)) for directory in directories])


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_members_agree_on_one_aggregate_name_who_sent_nan_and_prove_the_outcome(
    trainers: Trainers, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = [gradient_of(number) for number in range(4)]
    gradients[3]["bias"] = np.array(np.nan, np.float32)
    runs = [pool.submit(trainers.member(number).run, 1, gradients[number], timeout=60) for number in range(4)]
    committed = [run.result() for run in runs]
    outcome = committed[0].outcome
    assert len(outcome.op_ids) == 4
    for one in committed:
        assert one.outcome == outcome
        np.testing.assert_array_equal(one.aggregate.tensors["weight"], gradient_of(1)["weight"])
        assert {member: "not finite" in reason for member, reason in one.rejected.items()} == {
            trainers.clients[3].peer_id: True
        }
        assert (one.missing, one.equivocations, dict(one.differing), one.is_published) == ((), (), {}, True)
        proved = verify_commit(one.proof, members=trainers.members, group=GROUP, network_id="prime", round_number=1)
        assert proved.outcome == outcome
    assert not list((trainers.clients[0].data_dir or Path()).glob("rounds/*"))

    # Whoever comes later learns what it came to, even if the gradients are not to be had any more.
    monkeypatch.setattr(Gradients, "fetch", lambda *_, **__: {})
    late = trainers.member(0).run(1, gradient_of(9), timeout=60)
    assert late.outcome == outcome
    np.testing.assert_array_equal(late.aggregate.tensors["weight"], gradient_of(1)["weight"])
    assert late.aggregate.used == ()
    with pytest.raises(QueryError, match="round 1 is decided, but its aggregate could not be had"):
        trainers.member(0, dht=WithoutBlobs(trainers.clients[0])).run(1, gradient_of(9), timeout=1)
    with pytest.raises(ConfigError, match="3 of 4 members take part in round 1 by other terms"):
        trainers.member(0, bad=0).run(1, gradient_of(9), timeout=60)


def test_a_member_that_crashed_comes_back_and_says_nothing_twice_while_one_is_absent_and_equivocates(
    trainers: Trainers, pool: ThreadPoolExecutor
) -> None:
    key = round_key(GROUP, 2)
    liar = trainers.clients[3]
    for digest in (NIL, bytes(32)):
        lie = Vote(member=liar.peer_id, round_number=2, view=0, phase=Phase.PREVOTE, digest=digest)
        liar.put(key, b"", subkey=subkey_of(lie), ttl=600, capability=trainers.capabilities[3])
    others = [pool.submit(trainers.member(number).run, 2, gradient_of(number), timeout=60) for number in (0, 2)]
    with pytest.raises(Crash):
        trainers.member(1, dht=CrashesAtPrecommit(trainers.clients[1])).run(2, gradient_of(1), timeout=60)
    returned = trainers.member(1).run(2, gradient_of(1), timeout=60)
    committed = [run.result() for run in others]
    assert {one.outcome for one in committed} == {returned.outcome}
    assert len(returned.outcome.op_ids) == 3
    for one in committed:
        assert one.missing == (liar.peer_id,)
        assert [proof.first.statement.member for proof in one.equivocations] == [liar.peer_id]
    own = [found.subkey for page in liar.pages(key, publishers=[trainers.clients[1].peer_id]) for found in page]
    spoken = [subkey[:5] for subkey in own if is_statement(subkey)]
    assert len(set(spoken)) == len(spoken) > 0


def test_a_member_that_crashed_after_it_published_knows_what_its_codec_left_out(trainers: Trainers) -> None:
    client = trainers.clients[0]
    gradients = [{"w": np.array([3.0, 1.0])}, {"w": np.array([0.5, 2.0])}]

    def alone(codec: ErrorFeedback) -> RoundMember:
        return RoundMember(
            client,
            members=[client.peer_id],
            rule=FederatedAverage(),
            bad=0,
            spec=spec_of(gradients[0]),
            capability=trainers.capabilities[0],
            codec=codec,
            timeouts=QUICK,
            collect_s=2.0,
        )

    feedback = ErrorFeedback(TopK(fraction=0.5))
    alone(feedback).run(20, gradients[0], timeout=60)
    saved = feedback.errors
    Gradients(client, capability=trainers.capabilities[0]).publish(21, gradients[1], codec=feedback)
    for _ in range(2):  # it comes back before the round is over, and after
        returned = ErrorFeedback(TopK(fraction=0.5))
        returned.errors = saved
        alone(returned).run(21, gradients[1], timeout=60)
        assert returned.errors["w"].tolist() == feedback.errors["w"].tolist() == [0.5, 0.0]
        alone(returned).run(21, gradients[1], timeout=60)
        assert returned.errors["w"].tolist() == [0.5, 0.0]


def test_a_gradient_that_is_put_again_and_again_so_that_nobody_else_can_fetch_it_is_left_out(
    trainers: Trainers, pool: ThreadPoolExecutor
) -> None:
    gradients = [Gradients(client, capability=trainers.capabilities[i]) for i, client in enumerate(trainers.clients)]
    for number in range(4):
        gradients[number].publish(6, gradient_of(number))
    has_collected = Semaphore(0)

    def put_again(told: str) -> None:
        if "collected" in told:
            gradients[3].publish(6, gradient_of(3))
            has_collected.release()

    runs = []
    for number in range(3):
        runs.append(
            pool.submit(
                trainers.member(number, timeouts=QUICK, progress=put_again).run, 6, gradient_of(number), timeout=60
            )
        )
        assert has_collected.acquire(timeout=60)
    committed = [run.result() for run in runs]
    assert {one.outcome for one in committed} == {committed[0].outcome}
    assert {one.aggregate.used for one in committed} == {tuple(sorted(one.peer_id for one in trainers.clients[:3]))}


def test_members_who_collected_nothing_in_time_propose_what_has_come_since(
    trainers: Trainers, pool: ThreadPoolExecutor
) -> None:
    runs = [
        pool.submit(trainers.member(number, collect_s=1e-6, timeouts=QUICK).run, 7, gradient_of(number), timeout=60)
        for number in range(4)
    ]
    committed = [run.result() for run in runs]
    assert {one.outcome for one in committed} == {committed[0].outcome}
    assert len(committed[0].outcome.op_ids) >= 3


def test_a_node_that_is_in_a_round_cannot_be_in_it_twice(trainers: Trainers, pool: ThreadPoolExecutor) -> None:
    began = Semaphore(0)
    first = trainers.member(0, collect_s=0.1, progress=lambda _: began.release())
    run = pool.submit(first.run, 8, gradient_of(0), timeout=2)
    assert began.acquire(timeout=60)
    with pytest.raises(LocalProtocolError, match="this member is in a round already"):
        first.run(9, gradient_of(1), timeout=2)
    with pytest.raises(LocalProtocolError, match="this node is in the same round already"):
        trainers.member(0).run(8, gradient_of(1), timeout=2)
    with pytest.raises(QueryError, match="not decided"):
        run.result()


def test_members_with_other_terms_are_told_so(trainers: Trainers, pool: ThreadPoolExecutor) -> None:
    runs = [
        pool.submit(trainers.member(number, bad=number % 2).run, 3, gradient_of(number), timeout=60)
        for number in range(4)
    ]
    for number, run in enumerate(runs):
        with pytest.raises(ConfigError, match=rf"2 of 4 .* bad is {1 - number % 2}, not {number % 2}"):
            run.result()


def test_collecting_leaves_time_to_agree(trainers: Trainers, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts_s: list[float] = []

    def collect(*_: object, timeout: float, **__: object) -> None:
        timeouts_s.append(timeout)
        raise QueryError("nobody could be asked")

    monkeypatch.setattr(Gradients, "collect", collect)
    with pytest.raises(QueryError, match="not decided"):
        trainers.member(0, collect_s=60).run(11, gradient_of(0), timeout=0.5)
    assert max(timeouts_s) <= 0.25


def test_who_cannot_publish_what_was_decided_has_it_all_the_same(trainers: Trainers, pool: ThreadPoolExecutor) -> None:
    clients = [WithoutBlobs(trainers.clients[0]), *trainers.clients[1:]]
    runs = [
        pool.submit(trainers.member(number, dht=client).run, 10, gradient_of(number), timeout=60)
        for number, client in enumerate(clients)
    ]
    committed = [run.result() for run in runs]
    assert {one.outcome for one in committed} == {committed[0].outcome}
    assert [one.is_published for one in committed] == [False, True, True, True]


def test_a_round_that_too_few_take_part_in_fails_in_time_and_says_who_was_not_heard(trainers: Trainers) -> None:
    with pytest.raises(
        QueryError, match=r"round 4 was not decided within 1 s. 3 of 3 other .* 1 of 4 members are no quorum"
    ):
        trainers.member(0, collect_s=0.1).run(4, gradient_of(0), timeout=1)


def test_what_cannot_be_a_contribution_is_refused_before_anything_is_published(trainers: Trainers) -> None:
    with pytest.raises(ValidationError, match="-1"):
        trainers.member(0).run(-1, gradient_of(0))
    with pytest.raises(ValidationError, match="'bias' is missing"):
        trainers.member(0).run(5, {"weight": gradient_of(0)["weight"]})


def test_a_round_that_could_not_work_is_refused_at_once(trainers: Trainers) -> None:
    client = trainers.clients[0]
    settings: dict[str, Any] = {"rule": TrimmedMean(), "bad": 0, "spec": SPEC}
    with pytest.raises(ValidationError, match="is none of the 3 members"):
        RoundMember(
            client, members=list(trainers.members.weights.keys() - {client.peer_id}), capability=b"", **settings
        )
    with pytest.raises(ValidationError, match="names another member"):
        RoundMember(client, members=trainers.members, capability=trainers.capabilities[1], **settings)
    with pytest.raises(ValidationError, match="3 of 4 members, and trimmed-mean of 3 stands at most 1 bad, not 2"):
        trainers.member(0, bad=2)
    with pytest.raises(ValidationError, match="there cannot be -1"):
        trainers.member(0, bad=-1)
    with pytest.raises(ValidationError, match=r"a whole number, not 0\.8"):
        trainers.member(0, bad=cast("int", 0.8))
    with pytest.raises(ValidationError, match="only floating tensors"):
        RoundMember(
            client,
            members=trainers.members,
            capability=trainers.capabilities[0],
            **settings | {"spec": spec_of({"steps": np.array(1)})},
        )
    with pytest.raises(ValidationError, match="only entries that carry a capability"):
        client.put(round_key(GROUP, 5), b"", subkey=bytes(5), ttl=60)
    with pytest.raises(ValidationError, match="rounds are a group's"):
        RoundMember(client, members=trainers.members, capability=b"", **settings)
