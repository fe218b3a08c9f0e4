"""Members exchange gradients over a swarm: published, collected, named when they are missing or cannot be used."""

from __future__ import annotations

import base64
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import cast

import numpy as np
import pytest

from prime_dht import DhtConfig, LearningDHT, NodeConfig, PutReceipt, QueryError, ValidationError, connect
from prime_dht.blobs.cid import Cid
from prime_dht.entries.capability import grant, root_of
from prime_dht.entries.entry import BlobRef
from prime_dht.entries.limits import Limits
from prime_dht.ids import US_PER_S, PeerId, peer_text
from prime_dht.ml.aggregation import FederatedAverage, aggregate
from prime_dht.ml.codecs import ErrorFeedback, Int8, TopK, encode
from prime_dht.ml.gradients import Gradients
from prime_dht.ml.gradients.announcement import gradient_key, subkey_of
from prime_dht.ml.rounds import RoundMember
from prime_dht.ml.tensors import Tensors, spec_of
from prime_dht.net.identity import new_identity, peer_id_of
from prime_dht.testing.gradient_samples import TENSORS, announced
from prime_dht.testing.processes import LOOPBACK, running

LARGE: Tensors = {"w": np.random.default_rng(1).standard_normal((512, 300)).astype(np.float32)}
"""Too much for an entry, in every codec but top-k."""

GROUP = new_identity()


@pytest.fixture(scope="module")
def team(swarm: tuple[str, ...]) -> Iterator[list[LearningDHT]]:
    """Four members."""
    with ExitStack() as stack:
        yield [stack.enter_context(connect(swarm[number % len(swarm)])) for number in range(4)]


@pytest.fixture(scope="module")
def members(team: list[LearningDHT]) -> list[PeerId]:
    return [dht.peer_id for dht in team]


def capability_of(member: PeerId, *, left_s: float = 86_400.0) -> bytes:
    expires_at_us = int((time.time() + left_s) * US_PER_S)
    return grant(GROUP.private_key, member=member, expires_at_us=expires_at_us, network_id="prime")


def scaled(tensors: Tensors, factor: float) -> Tensors:
    return {name: np.multiply(tensor, np.float32(factor), dtype=np.float32) for name, tensor in tensors.items()}


@pytest.mark.parametrize("tensors", [TENSORS, LARGE], ids=["small", "large"])
def test_what_members_publish_everybody_collects(
    team: list[LearningDHT], members: list[PeerId], tensors: Tensors
) -> None:
    number = 100 + len(tensors)
    for factor, dht in enumerate(team, start=1):
        receipt = dht.publish(number, scaled(tensors, factor), {"loss": np.float32(0.5)}, weight=factor)
        assert receipt.acknowledged
    collected = team[-1].collect(number, members=members)
    assert (set(collected.gradients), collected.missing, collected.rejected) == (set(members), (), {})
    for factor, member in enumerate(members, start=1):
        gradient = collected.gradients[member]
        assert (gradient.weight, gradient.metrics) == (factor, {"loss": 0.5})
        for name, tensor in scaled(tensors, factor).items():
            assert np.array_equal(gradient.tensors[name], tensor)
    mean = aggregate(collected.contributions(), spec_of(tensors), FederatedAverage(), bad=0)
    assert np.allclose(mean.tensors["w"], scaled(tensors, 3)["w"])  # (1 + 4 + 9 + 16) / (1 + 2 + 3 + 4)
    wanted = {collected.gradients[member].op_id: member for member in members[:2]}
    fetched = Gradients(team[0]).fetch(number, wanted.keys(), members=members)
    assert {op_id: gradient.member for op_id, gradient in fetched.items()} == wanted


def test_who_is_missing_who_is_a_stranger_and_what_cannot_be_used_is_named(
    team: list[LearningDHT], members: list[PeerId]
) -> None:
    alice, bob, carol, stranger = team
    absent = peer_id_of(new_identity())
    alice.publish(200, TENSORS, codec="int8")
    carol.publish(200, LARGE)
    stranger.publish(200, TENSORS)
    unknown = announced(round_number=200).metadata() | {"codec": "lz4"}
    bob.put(gradient_key(200), encode(TENSORS), subkey=b"1", metadata=unknown)
    collected = alice.collect(200, members=[*members[:3], absent], minimum=1, spec=spec_of(TENSORS))
    assert (set(collected.gradients), collected.missing) == ({alice.peer_id}, (absent,))
    assert collected.gradients[alice.peer_id].codec == Int8()
    assert {peer_text(member): reason.partition(";")[0] for member, reason in collected.rejected.items()} == {
        peer_text(bob.peer_id): "no codec is named 'lz4'",
        peer_text(carol.peer_id): "its tensors take 614,400 bytes, those expected 60",
        peer_text(stranger.peer_id): "it is not a member",
    }


def test_of_two_of_one_member_the_newest_counts_and_none_replaces_the_other(team: list[LearningDHT]) -> None:
    alice, bob = team[:2]
    first = alice.publish(300, TENSORS, weight=1)
    second = alice.publish(300, TENSORS, weight=2)
    (gradient,) = bob.collect(300, members=[alice.peer_id]).gradients.values()
    assert (gradient.op_id, gradient.weight) == (second.op_id, 2.0)
    both = Gradients(bob).fetch(300, [first.op_id, second.op_id])
    assert {op_id: one.weight for op_id, one in both.items()} == {first.op_id: 1.0, second.op_id: 2.0}


def test_a_round_of_several_pages_is_found_whole(team: list[LearningDHT], members: list[PeerId]) -> None:
    rng = np.random.default_rng(6)
    puts = [
        [dht.publish(350, {"w": rng.standard_normal(15_000).astype(np.float32)}, wait=False) for _ in range(8)]
        for dht in team
    ]
    receipts = [[put.result() for put in of_one] for of_one in puts]
    op_ids = {receipt.op_id for of_one in receipts for receipt in of_one}
    assert len(list(team[0].pages(gradient_key(350)))) > 1
    assert Gradients(team[0]).fetch(350, op_ids).keys() == op_ids
    collected = team[0].collect(350, members=members)
    newest = {max(of_one, key=lambda receipt: receipt.created_at_us).op_id for of_one in receipts}
    assert {gradient.op_id for gradient in collected.gradients.values()} == newest


def test_who_publishes_while_others_collect_is_found(team: list[LearningDHT], members: list[PeerId]) -> None:
    with ThreadPoolExecutor() as pool:
        collecting = pool.submit(team[0].collect, 400, members=members[:2])
        team[0].publish(400, TENSORS)
        assert not collecting.done()
        team[1].publish(400, TENSORS, wait=False).result()
        collected = collecting.result()
    assert (set(collected.gradients), collected.missing) == (set(members[:2]), ())


def test_a_minimum_is_enough_and_without_it_what_is_there_now(team: list[LearningDHT], members: list[PeerId]) -> None:
    assert team[0].collect(500).gradients == {}
    team[1].publish(500, TENSORS)
    team[2].publish(500, TENSORS)
    assert set(team[0].collect(500).gradients) == set(members[1:3])
    assert set(team[0].collect(500, minimum=2).gradients) == set(members[1:3])
    collected = team[0].collect(500, members=members, minimum=2)
    assert set(collected.gradients) == set(members[1:3])
    assert set(collected.missing) == {members[0], members[3]}


def test_a_blob_that_nobody_has_holds_up_no_other_and_is_named(team: list[LearningDHT], members: list[PeerId]) -> None:
    nobodys = BlobRef(bytes(Cid.of_raw(b"nobody's")), 600_000, "size-1048576")
    announcement = announced(LARGE, round_number=600)
    team[0].put(
        gradient_key(600),
        nobodys,
        subkey=subkey_of(announcement, encode(LARGE)),
        metadata=announcement.metadata(),
        wait_s=0,
    )
    for dht in team[1:]:
        dht.publish(600, LARGE)
    collected = team[1].collect(600, members=members, minimum=3)
    assert set(collected.gradients) == set(members[1:])
    assert collected.missing == ()
    assert collected.rejected.keys() == {members[0]}
    assert collected.rejected[members[0]].startswith("its 600,000 bytes did not come before there were enough others")


def test_in_a_group_only_those_with_a_capability_publish_and_all_can_collect(team: list[LearningDHT]) -> None:
    alice, bob, outsider = team[:3]
    of_alice, of_bob = (Gradients(dht, capability=capability_of(dht.peer_id)) for dht in (alice, bob))
    of_alice.publish(700, TENSORS)
    of_bob.publish(700, LARGE)
    group = f"/prime/group/{root_of(GROUP.public_key).hex()}/"
    with pytest.raises(ValidationError, match="only entries that carry a capability"):
        Gradients(outsider, group=group).publish(700, TENSORS)
    with pytest.raises(ValidationError, match="the capability names another member"):
        Gradients(outsider, capability=capability_of(alice.peer_id)).publish(700, TENSORS)
    outsider.publish(700, TENSORS)
    assert set(Gradients(outsider, group=group).collect(700, minimum=2).gradients) == {alice.peer_id, bob.peer_id}


def test_the_text_in_the_file_of_an_invitation_is_a_capability(team: list[LearningDHT]) -> None:
    text = base64.b64encode(capability_of(team[0].peer_id)).decode() + "\n"
    Gradients(team[0], capability=text).publish(750, TENSORS)
    group = f"/prime/group/{root_of(GROUP.public_key).hex()}/"
    assert set(Gradients(team[1], group=group).collect(750, minimum=1).gradients) == {team[0].peer_id}
    with pytest.raises(ValidationError, match="not what `prime-dht group invite` writes"):
        Gradients(team[0], capability="trainers.capability")


def test_rounds_of_one_run_are_not_those_of_another(team: list[LearningDHT]) -> None:
    first, second = team[:2]
    first.publish(760, TENSORS, run="digits-1")
    second.publish(760, TENSORS, run="digits-2")
    assert set(team[2].collect(760, run="digits-2").gradients) == {second.peer_id}
    assert not team[2].collect(760).gradients
    for wrong in ("a:b", "a/b", " ", 65 * "a", cast("str", None)):
        with pytest.raises(ValidationError, match="a run is named by"):
            first.publish(760, TENSORS, run=wrong)


def life_s(receipt: PutReceipt) -> float:
    return (receipt.expires_at_us - receipt.created_at_us) / US_PER_S


def test_a_gradient_lives_for_hours_but_never_longer_than_its_capability(team: list[LearningDHT]) -> None:
    alice = team[0]
    assert life_s(alice.publish(800, TENSORS)) == 4 * 3600
    assert life_s(alice.publish(800, TENSORS, ttl=600)) == 600
    assert life_s(Gradients(alice, capability=capability_of(alice.peer_id)).publish(800, TENSORS)) == 4 * 3600
    soon_over = Gradients(alice, capability=capability_of(alice.peer_id, left_s=3600))
    assert 3000 < life_s(soon_over.publish(800, TENSORS)) <= 3600
    with pytest.raises(ValidationError, match="the capability has ended"):
        Gradients(alice, capability=capability_of(alice.peer_id, left_s=-1)).publish(800, TENSORS)


def test_with_error_feedback_all_that_is_left_out_comes_later(team: list[LearningDHT]) -> None:
    alice, bob = team[:2]
    feedback = ErrorFeedback(TopK(fraction=0.1))
    rng = np.random.default_rng(2)
    sent, received = np.zeros(40), np.zeros(40)
    for number in range(900, 910):
        gradient = {"w": rng.standard_normal(40).astype(np.float32)}
        alice.publish(number, gradient, codec=feedback)
        collected = bob.collect(number, members=[alice.peer_id])
        assert collected.gradients[alice.peer_id].codec == TopK(fraction=0.1)
        sent += gradient["w"]
        received += collected.gradients[alice.peer_id].tensors["w"].astype(np.float64)
    assert np.allclose(sent - received, feedback.errors["w"].astype(np.float64), atol=1e-5)


def test_a_publish_that_fails_leaves_the_feedback_as_it_was(team: list[LearningDHT]) -> None:
    feedback = ErrorFeedback(TopK(fraction=0.5))
    gradient = {"w": np.array([1.0, 0.25], np.float32)}
    with pytest.raises(QueryError, match="not done within"):
        team[0].publish(950, gradient, codec=feedback, timeout=1e-6)
    assert feedback.errors == {}
    team[0].publish(950, gradient, codec=feedback)
    assert feedback.errors["w"].tolist() == [0.0, 0.25]


def test_a_round_may_be_numbered_by_numpy(team: list[LearningDHT]) -> None:
    number = np.int64(960)
    team[0].publish(number, TENSORS)
    collected = team[1].collect(number, members=[team[0].peer_id])
    assert (collected.round, set(collected.gradients)) == (960, {team[0].peer_id})


def test_what_fails_in_a_future_goes_with_the_next_gradient(team: list[LearningDHT]) -> None:
    feedback = ErrorFeedback(TopK(fraction=0.5))
    future = team[0].publish(951, {"w": np.array([1.0, 0.25], np.float32)}, codec=feedback, timeout=1e-6, wait=False)
    with pytest.raises(QueryError, match="not done within"):
        future.result()
    assert feedback.errors["w"].tolist() == [1.0, 0.25]
    team[0].publish(952, {"w": np.array([1.0, 0.25], np.float32)}, codec=feedback, wait=False).result()
    assert feedback.errors["w"].tolist() == [0.0, 0.5]


MISTAKES: list[tuple[Callable[[LearningDHT], object], str]] = [
    (lambda dht: dht.publish(-1, TENSORS), "a round is a whole number from 0 up"),
    (
        lambda dht: dht.publish(1, TENSORS, codec="zip"),
        "no codec is named 'zip'; there are none, fp16, bf16, int8, topk",
    ),
    (lambda dht: dht.publish(1, TENSORS, codec=7), "a codec is a name, a Codec or an ErrorFeedback, not int"),  # type: ignore[call-overload]
    (lambda dht: dht.publish(1, TENSORS, weight=0), "the weight of a gradient is above 0"),
    (lambda dht: dht.publish(1, TENSORS, {"loss": float("nan")}), "the metric 'loss' is not finite"),
    (lambda dht: dht.publish(1, {"w": np.array([np.nan])}, codec="int8"), "'w' holds values that are not finite"),
    (lambda dht: dht.publish(1, {"w": np.array(["a"])}), "the tensor 'w' is of dtype"),
    (lambda dht: dht.publish(1, {"w": [[1], [2, 3]]}), "the tensor 'w' is no array"),
    (lambda dht: dht.publish(1, [1, 2]), "tensors are names and arrays"),  # type: ignore[call-overload]
    (lambda dht: dht.publish(1, TENSORS, weight="x"), "the weight of a gradient is a number"),  # type: ignore[call-overload]
    (lambda dht: dht.publish(1, TENSORS, weight=10**400), "the weight of a gradient is a number"),
    (lambda dht: dht.publish(1, TENSORS, ["loss"]), "metrics are names and numbers"),  # type: ignore[call-overload]
    (lambda dht: dht.publish(1, TENSORS, ttl="4"), "ttl is a number, not str"),  # type: ignore[call-overload]
    (lambda dht: dht.collect(1, members=[]), "name at least one member"),
    (lambda dht: dht.collect(1, members=peer_text(dht.peer_id)), "members are to be in a list or the like, not str"),
    (lambda dht: dht.collect(1, timeout=None), "timeout is a number, not NoneType"),  # type: ignore[arg-type]
    (lambda dht: dht.collect(1, max_bytes="1"), "max_bytes is a number, not str"),  # type: ignore[arg-type]
    (lambda dht: dht.collect(1, minimum="1"), "minimum is a number, not str"),  # type: ignore[arg-type]
    (lambda dht: dht.collect(1, members=["me"]), "'me' is not a peer id"),
    (lambda dht: dht.collect(1, members=[PeerId(b"me")]), "not the bytes of a peer id"),
    (lambda dht: dht.collect(1, members=[5]), "a peer id is bytes or text, not int"),  # type: ignore[list-item]
    (lambda dht: dht.collect(1, members=5), "members are to be in a list or the like, not int"),  # type: ignore[arg-type]
    (lambda dht: dht.collect(1, members=[dht.peer_id], minimum=2), "minimum is at least 1, and at most"),
    (lambda dht: dht.collect(1, minimum=0), "minimum is at least 1"),
    (lambda dht: dht.collect(1, timeout=0), "timeout must be a positive number of seconds"),
    (lambda dht: dht.collect(1, max_bytes=0), "max_bytes must be at least 1"),
]


@pytest.mark.parametrize(("mistake", "complaint"), MISTAKES, ids=[complaint for _, complaint in MISTAKES])
def test_a_mistake_is_told_in_plain_words(
    team: list[LearningDHT], mistake: Callable[[LearningDHT], object], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        mistake(team[0])


def test_where_the_network_allows_less_than_four_hours_a_gradient_lives_that_long() -> None:
    dht_config = DhtConfig(ttl=600.0, limits=Limits(max_ttl_s=3600.0))
    with connect(serve=True, config=NodeConfig(listen=(LOOPBACK,), dht=dht_config)) as dht:
        receipt = dht.publish(1, TENSORS)
        capability = capability_of(dht.peer_id, left_s=2 * 3600.0)
        as_member = Gradients(dht, capability=capability).publish(1, TENSORS)
        for one in (receipt, as_member):
            assert one.expires_at_us - one.created_at_us == 3600 * US_PER_S
        for number, ttl_s in ((2, None), (3, 600.0)):
            member = RoundMember(
                dht,
                members=[dht.peer_id],
                rule=FederatedAverage(),
                bad=0,
                spec=spec_of(TENSORS),
                capability=capability,
                ttl_s=ttl_s,
            )
            assert member.run(number, TENSORS, timeout=60).is_published
            (gradient,) = dht.get_all(gradient_key(number, root_of(GROUP.public_key)))
            assert gradient.expires_at_us - gradient.created_at_us == (ttl_s or 3600) * US_PER_S


def test_ctrl_c_ends_collecting_at_once_and_the_client_goes_on(swarm: tuple[str, ...]) -> None:
    script = """
import sys, prime_dht
from prime_dht.ml.gradients import gradients

async def told(*arguments, **options):
    print("collecting", flush=True)
    await bring(*arguments, **options)

bring, gradients.bring = gradients.bring, told
with prime_dht.connect(sys.argv[1]) as dht:
    try:
        dht.collect(1000, members=[dht.peer_id], timeout=3600)
    except KeyboardInterrupt:
        dht.publish(1000, {"w": [1.0]})
        print(len(dht.collect(1000, members=[dht.peer_id]).gradients), flush=True)
"""
    with running(sys.executable, "-c", script, swarm[0]) as process:
        assert process.line() == "collecting"
        process.process.send_signal(signal.SIGINT)
        assert [process.line(), process.line()] == ["collecting", "1"]
        ended = process.end()
    assert (ended.status, ended.err) == (0, "")
