"""What is gathered of what is found: the newest of each member, once it can be used; and when there is enough."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.ml.codecs import Int8, Plain, TopK, codec_named, encode
from prime_dht.ml.gradients.announcement import subkey_of
from prime_dht.ml.gradients.gathering import (
    DEFAULT_MAX_BYTES,
    MAX_BYTES_OF_ANYBODY,
    MAX_NAMES,
    Candidate,
    Expected,
    Gathering,
    collected,
    read_gradient,
)
from prime_dht.ml.tensors import Spec, Tensors, spec_of
from prime_dht.node.results import Found
from prime_dht.testing.gradient_samples import ROUND, TENSORS, announced, found, member

ALICE, BOB, CAROL, STRANGER = map(member, range(4))
EXPECTED = Expected(round=ROUND)


def members_gathering(
    names: Collection[PeerId] | None = (ALICE, BOB, CAROL), *, enough: int | None = None, expected: Expected = EXPECTED
) -> Gathering[PeerId]:
    return Gathering(expected, lambda one: one.publisher, names, enough=enough)


def read(candidate: Candidate[PeerId], expected: Expected = EXPECTED) -> None:
    read_gradient(candidate, candidate.found.value, expected)


def bring_all(gathering: Gathering[PeerId], expected: Expected = EXPECTED) -> None:
    """Settle everything in the line."""
    while (candidate := gathering.next()) is not None:
        try:
            gathering.accept(candidate, read_gradient(candidate, candidate.found.value, expected))
        except ValidationError as error:
            gathering.reject(candidate, str(error))


def look(gathering: Gathering[PeerId], *entries: Found, expected: Expected = EXPECTED) -> None:
    for entry in entries:
        gathering.take(entry)
    gathering.end_look()
    bring_all(gathering, expected)


def is_done(gathering: Gathering[PeerId] | Gathering[OpId]) -> bool:
    return gathering.is_done


def outcome(
    gathering: Gathering[PeerId], names: Collection[PeerId] | None = (ALICE, BOB, CAROL)
) -> Mapping[str, object]:
    result = collected(gathering, ROUND, names, "within 1 s")
    return {"gradients": set(result.gradients), "missing": set(result.missing), "rejected": dict(result.rejected)}


def test_each_member_is_collected_missing_or_rejected_with_the_reason() -> None:
    gathering = members_gathering()
    look(gathering, found(ALICE), found(BOB, changes={"codec": "lz4"}))
    assert not is_done(gathering)
    result = collected(gathering, ROUND, (ALICE, BOB, CAROL), "within 1 s")
    assert (set(result.gradients), result.missing) == ({ALICE}, (CAROL,))
    assert result.rejected.keys() == {BOB}
    assert "no codec is named 'lz4'" in result.rejected[BOB]
    gradient = result.gradients[ALICE]
    assert (gradient.member, gradient.round, gradient.weight, gradient.metrics) == (ALICE, ROUND, 2.0, {"loss": 0.5})
    assert (gradient.codec, gradient.op_id, gradient.created_at_us) == (Plain(), found(ALICE).op_id, 1)
    (contribution,) = result.contributions()
    assert (contribution.member, contribution.weight) == (ALICE, 2.0)
    assert np.array_equal(contribution.tensors["w"], TENSORS["w"])


def test_strangers_are_told_apart_and_left_out() -> None:
    gathering = members_gathering([ALICE])
    look(gathering, found(STRANGER), found(ALICE))
    assert is_done(gathering)
    assert outcome(gathering, [ALICE]) == {
        "gradients": {ALICE},
        "missing": set(),
        "rejected": {STRANGER: "it is not a member"},
    }
    look(gathering, *(found(member(number)) for number in range(10, 10 + 2 * MAX_NAMES)))
    assert len(gathering.others) == MAX_NAMES


def test_after_the_first_look_only_those_are_sought_of_whom_there_is_nothing() -> None:
    gathering = members_gathering()
    sought = [gathering.sought]
    look(gathering, found(ALICE), found(BOB, changes={"weight": "-1"}))
    sought.append(gathering.sought)
    look(gathering, found(CAROL))
    assert [*sought, gathering.sought] == [None, {CAROL}, set()]
    assert is_done(gathering)


def test_without_names_everybody_is_sought_and_one_look_is_enough() -> None:
    gathering = members_gathering(None)
    assert not is_done(gathering)
    gathering.take(found(ALICE))
    gathering.end_look()
    assert not is_done(gathering)
    bring_all(gathering)
    assert is_done(gathering)
    assert gathering.sought is None


def test_a_minimum_is_enough_but_is_waited_for() -> None:
    gathering = members_gathering(None, enough=2)
    look(gathering, found(ALICE))
    assert not is_done(gathering)
    look(gathering, found(ALICE), found(BOB))
    assert is_done(gathering)
    of_members = members_gathering(enough=2)
    look(of_members, found(ALICE), found(BOB, changes={"weight": "-1"}))
    assert not is_done(of_members)
    look(of_members, found(CAROL))
    assert is_done(of_members)


def test_what_cannot_become_enough_any_more_is_done() -> None:
    gathering = members_gathering([ALICE, BOB], enough=2)
    look(gathering, found(ALICE), found(BOB, value=b"garbage"))
    assert is_done(gathering)


def test_the_newest_counts_whatever_becomes_of_it() -> None:
    new, old = found(ALICE, created_at_us=2), found(ALICE, created_at_us=1)
    gathering = members_gathering()
    look(gathering, new, old)
    assert gathering.gradients[ALICE].op_id == new.op_id
    look(gathering, found(ALICE, created_at_us=3, value=b"garbage"))
    assert gathering.gradients == {}
    assert gathering.rejected.keys() == {ALICE}
    look(gathering, found(ALICE, created_at_us=4))
    assert gathering.rejected == {}
    assert gathering.gradients[ALICE].created_at_us == 4


def test_one_whose_newest_announces_what_cannot_be_used_has_nothing_older_to_be_brought() -> None:
    gathering = members_gathering()
    gathering.take(found(ALICE))
    gathering.take(found(ALICE, created_at_us=2, changes={"codec": "lz4"}))
    bring_all(gathering)
    assert not gathering.gradients
    assert gathering.rejected.keys() == {ALICE}


def test_what_is_brought_when_a_newer_one_was_found_is_dropped() -> None:
    gathering = members_gathering()
    gathering.take(found(ALICE))
    old = gathering.next()
    assert old is not None
    gathering.take(found(ALICE, created_at_us=2))
    gathering.accept(old, read_gradient(old, old.found.value, EXPECTED))
    gathering.reject(old, "too late")
    gathering.put_off(old, "too late")
    assert (gathering.gradients, gathering.rejected) == ({}, {})
    bring_all(gathering)
    assert gathering.gradients[ALICE].created_at_us == 2


def test_the_line_is_ordered_by_what_should_have_come_soonest_and_begins_with_what_was_not_tried() -> None:
    gathering = members_gathering()
    for entry in (found(ALICE, is_blob=True), found(BOB, is_blob=True), found(CAROL, is_blob=True)):
        gathering.take(entry)
    first, second, third = (candidate for _ in range(3) if (candidate := gathering.next()) is not None)
    first.note_come(first.value_bytes // 2)
    second.note_come(second.value_bytes // 4)
    for candidate in (second, first, third):
        candidate.note_time(10.0)
        gathering.put_off(candidate, "slow")
    assert third.expected_s == math.inf
    assert gathering.has_sooner(third)
    assert gathering.next() is first
    assert not gathering.has_sooner(first)
    gathering.take(found(BOB, created_at_us=2, is_blob=True))
    assert gathering.has_sooner(first)
    assert [candidate.expected_s for candidate in iter(gathering.next, None)] == [0.0, math.inf]


def test_the_pace_is_that_of_the_last_turn_and_what_is_read_again_does_not_count() -> None:
    gathering = members_gathering()
    gathering.take(found(ALICE, is_blob=True))
    candidate = gathering.next()
    assert candidate is not None
    whole = candidate.value_bytes
    paces = []
    for come in (whole // 2, 1, whole // 2, whole // 2 + 1):
        candidate.note_come(come)
        candidate.note_time(2.0)
        paces.append(candidate.expected_s)
    left = whole - whole // 2
    assert paces == [left * 2.0 / (whole // 2), math.inf, math.inf, (left - 1) * 2.0]


def test_one_that_stays_away_is_named_with_the_reason() -> None:
    gathering = members_gathering()
    for entry in (found(ALICE, is_blob=True), found(BOB)):
        gathering.take(entry)
    slow = gathering.next()
    assert slow is not None
    gathering.put_off(slow, "nobody has it")
    late = gathering.late("within 1 s")
    assert late == {
        slow.name: f"its {slow.value_bytes:,} bytes did not come within 1 s: nobody has it",
        BOB: f"its {slow.value_bytes:,} bytes did not come within 1 s",
    }


def test_op_ids_are_gathered_whoever_published_them() -> None:
    wanted = [found(ALICE, created_at_us=1), found(ALICE, created_at_us=2), found(BOB)]
    gathering = Gathering[OpId](EXPECTED, lambda one: one.op_id, [one.op_id for one in wanted])
    for entry in (found(CAROL), *wanted, *wanted):
        gathering.take(entry)
    while (candidate := gathering.next()) is not None:
        assert not is_done(gathering)
        gathering.accept(candidate, read_gradient(candidate, candidate.found.value, EXPECTED))
    assert is_done(gathering)
    assert gathering.gradients.keys() == {one.op_id for one in wanted}


WRONG_SHAPE: Tensors = {"w": np.zeros((4, 3), np.float32), "b": np.zeros(3, np.float32)}
SPEC = spec_of(TENSORS)

UNUSABLE: dict[str, tuple[Found, str]] = {
    "another round": (found(ALICE, round_number=6), "it says that it is of round 6, not 7"),
    "an unknown codec": (found(ALICE, changes={"codec": "lz4"}), "no codec is named 'lz4'"),
    "no gradient": (replace(found(ALICE), metadata={}), "does not announce a gradient"),
    "too many tensors": (found(ALICE, {"w": np.zeros(10_000)}), "its tensors take 80,000 bytes, those expected 60"),
    "a value without end": (
        replace(found(ALICE, is_blob=True, value=bytes((4 << 20) + 61))),
        "made 4,194,365 bytes of 60: take another codec",
    ),
    "a truncated value": (found(ALICE, value=encode(TENSORS)[:-5]), "not those that its subkey names"),
    "another value in its slot": (found(ALICE, value=encode(WRONG_SHAPE)), "not those that its subkey names"),
    "another weight in its slot": (found(ALICE, changes={"weight": "3.0"}), "not those that its subkey names"),
    "a wrong shape": (found(ALICE, WRONG_SHAPE), "the tensor 'w' is float32 (4, 3), not float32 (3, 4)"),
    "a missing tensor": (found(ALICE, {"w": TENSORS["w"]}), "the tensor 'b' is missing"),
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_cannot_be_used_is_rejected_with_the_reason(what: str) -> None:
    entry, complaint = UNUSABLE[what]
    expected = Expected(round=ROUND, spec=SPEC)
    gathering = members_gathering(expected=expected)
    look(gathering, entry, expected=expected)
    assert complaint in gathering.rejected[ALICE]
    assert not gathering.gradients


def test_what_announces_too_much_is_never_in_the_line() -> None:
    for expected, complaint in (
        (Expected(round=ROUND, max_bytes=59), "at most 59 are taken (max_bytes)"),
        (Expected(round=ROUND, spec=SPEC, max_bytes=59), "at most 59 are taken (max_bytes)"),
        (Expected(round=ROUND, spec={"b": SPEC["b"]}), "those expected 12"),
    ):
        gathering = members_gathering(expected=expected)
        gathering.take(found(ALICE, is_blob=True))
        assert not gathering.is_waited_for
        assert complaint in gathering.rejected[ALICE]
    large = found(ALICE, changes={"tensor_bytes": str(DEFAULT_MAX_BYTES + 1)}, is_blob=True)
    gathering = members_gathering()
    gathering.take(large)
    assert "at most 268,435,456 are taken (max_bytes)" in gathering.rejected[ALICE]


def lying(**changes: object) -> Candidate[PeerId]:
    """A candidate whose announcement is not what its bytes are, but whose subkey is of both."""
    announcement = replace(announced(), **changes)  # type: ignore[arg-type]
    value = encode(TENSORS)
    entry = replace(found(ALICE), subkey=subkey_of(announcement, value), value=value)
    return Candidate(ALICE, entry, announcement)


def test_bytes_that_are_not_what_was_announced_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"of the codec Plain\(\), not of Int8\(block=256\)"):
        read(lying(codec=Int8()))
    with pytest.raises(ValidationError, match="take 60 bytes, not 16 as announced"):
        read(lying(tensor_bytes=16))


def test_tensors_of_another_spec_are_refused_before_any_is_decoded() -> None:
    announcement, value = announced(WRONG_SHAPE), encode(WRONG_SHAPE)[:-5]
    entry = replace(found(ALICE, WRONG_SHAPE, value=value), subkey=subkey_of(announcement, value))
    with pytest.raises(ValidationError, match="the frame of encoded tensors is damaged"):
        read(Candidate(ALICE, entry, announcement))
    with pytest.raises(ValidationError, match=r"the tensor 'w' is float32 \(4, 3\), not float32 \(3, 4\)"):
        read(Candidate(ALICE, entry, announcement), Expected(round=ROUND, spec=SPEC))


def test_of_anybody_there_are_only_so_many_and_so_much() -> None:
    gathering = members_gathering(None)
    for number in range(MAX_NAMES + 5):
        gathering.take(found(member(number)))
    assert len(list(iter(gathering.next, None))) == MAX_NAMES
    large = str(MAX_BYTES_OF_ANYBODY // 2)
    expected = Expected(round=ROUND, max_bytes=MAX_BYTES_OF_ANYBODY)
    gathering = members_gathering(None, expected=expected)
    for number in range(3):
        gathering.take(found(member(number), changes={"tensor_bytes": large}))
    assert gathering.rejected.keys() == {member(2)}
    assert "name the members" in gathering.rejected[member(2)]
    named = members_gathering(expected=expected)
    for name in (ALICE, BOB, CAROL):
        named.take(found(name, changes={"tensor_bytes": large}))
    assert not named.rejected


@pytest.mark.parametrize("name", ["none", "fp16", "bf16", "int8", "topk"])
def test_every_codec_is_recorded_and_read(name: str) -> None:
    codec = codec_named(name)
    gathering = members_gathering()
    look(gathering, found(ALICE, codec=codec))
    gradient = gathering.gradients[ALICE]
    assert gradient.codec == codec
    assert spec_of(gradient.tensors) == SPEC


def test_max_bytes_is_at_least_1() -> None:
    with pytest.raises(ValidationError, match="max_bytes must be at least 1"):
        Expected(round=ROUND, max_bytes=0)


def test_tensors_are_no_spec_of_theirs() -> None:
    for wrong in (TENSORS, ["w"], "w"):
        with pytest.raises(ValidationError, match="a spec is what prime_dht"):
            Expected(round=ROUND, spec=cast("Spec", wrong))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    entries=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.booleans()), max_size=12),
    turns=st.lists(st.sampled_from(["take", "bring", "put off"]), max_size=40),
)
def test_in_whatever_order_things_come_the_newest_of_each_member_is_what_counts(
    entries: list[tuple[int, int, bool]], turns: list[str]
) -> None:
    # A version of a member is good or bad, once and for all.
    good = {(who, version): is_good for who, version, is_good in entries}
    made = [
        found(member(who), created_at_us=version, value=None if good[who, version] else b"x")
        for who, version, _ in entries
    ]
    gathering, to_take = members_gathering(), list(made)
    for turn in turns:
        if turn == "take" and to_take:
            gathering.take(to_take.pop())
        elif (candidate := gathering.next()) is not None:
            if turn == "put off":
                gathering.put_off(candidate, "later")
            else:
                try:
                    gathering.accept(candidate, read_gradient(candidate, candidate.found.value, EXPECTED))
                except ValidationError as error:
                    gathering.reject(candidate, str(error))
    look(gathering, *to_take)
    newest = {who: max(version for one, version in good if one == who) for who, _ in good if who < 3}
    assert {name: one.created_at_us for name, one in gathering.gradients.items()} == {
        member(who): version for who, version in newest.items() if good[who, version]
    }
    assert gathering.rejected.keys() == {member(who) for who, version in newest.items() if not good[who, version]}
    assert gathering.others == {member(who) for who, _ in good if who >= 3}
    assert is_done(gathering) == (newest.keys() == {0, 1, 2})


def test_topk_of_everything_is_too_large_only_beyond_a_bound() -> None:
    gathering = members_gathering()
    look(gathering, found(ALICE, codec=TopK(fraction=1.0)))
    assert gathering.gradients.keys() == {ALICE}
