"""What an entry says of its gradient is read as it was meant, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import SupportsFloat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.entries.capability import grant, root_of
from prime_dht.errors import ValidationError
from prime_dht.ml.codecs import Codec, Int8, Plain, TopK
from prime_dht.ml.gradients.announcement import (
    MAX_ROUND,
    Announcement,
    as_metrics,
    checked_round,
    gradient_key,
    group_of,
    read_announcement,
    subkey_of,
)
from prime_dht.net.identity import new_identity
from prime_dht.testing.gradient_samples import announced, member

CODECS: tuple[Codec, ...] = (Plain(), Int8(block=64), TopK(fraction=1 / 3))
GOOD = announced(codec=Int8()).metadata()
GROUP = new_identity()


class Phase(StrEnum):
    WARM = "warm"
    HOST = "host"


ROOT = root_of(GROUP.public_key)


@settings(derandomize=True, deadline=None)
@given(
    round_number=st.integers(0, MAX_ROUND),
    codec=st.sampled_from(CODECS),
    weight=st.floats(min_value=0, max_value=2.0**53, exclude_min=True),
    tensor_bytes=st.integers(0, 1 << 40),
    metrics=st.dictionaries(
        st.text(max_size=10),
        st.text(max_size=10) | st.floats(-1e300, 1e300) | st.integers(-(10**30), 10**30),
        max_size=4,
    ),
)
def test_an_announcement_comes_back_as_it_was(
    round_number: int, codec: Codec, weight: float, tensor_bytes: int, metrics: dict[str, float | str]
) -> None:
    announcement = Announcement(
        round=round_number, codec=codec, weight=weight, tensor_bytes=tensor_bytes, metrics=metrics
    )
    assert read_announcement(announcement.metadata()) == announcement
    assert sum(len(name) + len(text.encode()) for name, text in announcement.metadata().items()) < 4096


def test_other_names_in_the_metadata_are_passed_over() -> None:
    assert read_announcement({**GOOD, "name": "x"}) == announced(codec=Int8())


BAD: list[tuple[Mapping[str, str], str]] = [
    ({"round": "-1"}, "round it announces is no whole number"),
    ({"round": "٣"}, "round it announces is no whole number"),
    ({"round": "9" * 5000}, "round it announces is no whole number"),
    ({"round": str(1 << 63)}, "a round is a whole number"),
    ({"codec": "lz4"}, "no codec is named 'lz4'; there are none, fp16"),
    ({"codec": "none"}, "the codec none has no such parameters: block"),
    ({"parameters": '{"block":0}'}, "the block of int8"),
    ({"parameters": '{"name":"none"}'}, "no such parameters: name"),
    ({"parameters": '{"self":1}'}, "no such parameters: self"),
    ({"parameters": "[]"}, "parameters it announces are no JSON object"),
    ({"parameters": "[" * 4000}, "parameters it announces are no JSON"),
    ({"weight": "0.0"}, "weight of a gradient is above 0"),
    ({"weight": "nan"}, "weight of a gradient is above 0"),
    ({"weight": "1e300"}, "weight of a gradient is above 0"),
    ({"weight": "much"}, "weight it announces is no number"),
    ({"weight": "1" + 40 * "0"}, "weight it announces is no number"),
    ({"tensor_bytes": "1e3"}, "tensor_bytes it announces is no whole number"),
    ({"tensor_bytes": str(1 << 63)}, "no tensors take"),
    ({"metrics": '{"loss":NaN}'}, "metrics it announces are no JSON"),
    ({"metrics": '{"loss":1e999}'}, "'loss' is not finite"),
    ({"metrics": '{"loss":' + "9" * 4000 + "}"}, "'loss' is not finite"),
    ({"metrics": '{"loss":[1]}'}, "'loss' is neither"),
    ({"metrics": '{"loss":true}'}, "'loss' is neither"),
    ({"metrics": '{"loss":"' + "x" * 3000 + '"}'}, "take more than 2,048 bytes"),
]


@pytest.mark.parametrize(("changes", "complaint"), BAD, ids=repr)
def test_what_is_no_announcement_is_refused_with_the_reason(changes: Mapping[str, str], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        read_announcement({**GOOD, **changes})


@pytest.mark.parametrize("name", GOOD)
def test_none_of_its_texts_may_be_missing(name: str) -> None:
    with pytest.raises(ValidationError, match="does not announce a gradient"):
        read_announcement({other: text for other, text in GOOD.items() if other != name})


def test_what_can_be_a_number_becomes_a_metric() -> None:
    given_metrics: dict[str, SupportsFloat | str] = {
        "loss": np.float32(0.5),
        "steps": np.array(3),
        "ok": True,
        "host": "a",
    }
    assert as_metrics(given_metrics) == {"loss": 0.5, "steps": 3.0, "ok": 1, "host": "a"}
    with pytest.raises(ValidationError, match="the metric 'losses' is neither a number nor a text"):
        as_metrics({"losses": np.zeros(3)})
    with pytest.raises(ValidationError, match="'loss' is not finite"):
        Announcement(round=1, codec=Plain(), weight=1, tensor_bytes=1, metrics=as_metrics({"loss": math.nan}))


def test_a_metric_may_be_a_member_of_an_enumeration_of_texts() -> None:
    metrics = as_metrics({"phase": Phase.WARM, Phase.HOST: np.str_("a")})
    announcement = Announcement(round=1, codec=Plain(), weight=1, tensor_bytes=1, metrics=metrics)
    assert announcement.metadata()["metrics"] == '{"host":"a","phase":"warm"}'


def test_another_value_or_another_announcement_has_another_subkey() -> None:
    subkeys = {
        subkey_of(announcement, value)
        for announcement in (announced(), announced(codec=Int8()), announced(round_number=8))
        for value in (b"", b"a")
    }
    assert len(subkeys) == 6
    assert {len(subkey) for subkey in subkeys} == {16}


def test_a_group_is_named_by_its_keys_its_root_or_a_capability() -> None:
    capability = grant(GROUP.private_key, member=member(1), expires_at_us=10, network_id="prime")
    prefix = f"/prime/group/{ROOT.hex()}/"
    assert {group_of(prefix), group_of(prefix[:-1]), group_of(ROOT), group_of(None, capability)} == {ROOT}
    assert group_of(None) is None
    assert gradient_key(3, ROOT) == f"{prefix}gradient:3".encode()
    for bad in (b"root", "group", "/prime/group/", "/prime/group/12/"):
        with pytest.raises(ValidationError, match="a group"):
            group_of(bad)


def test_a_round_may_be_numbered_by_numpy() -> None:
    assert checked_round(np.int64(7)) == 7
    assert type(checked_round(np.uint8(7))) is int


@pytest.mark.parametrize("number", [-1, 1 << 63, 1.0, True, "1"])
def test_a_round_is_a_whole_number_from_0_up(number: int) -> None:
    with pytest.raises(ValidationError, match="a round is a whole number from 0 up"):
        gradient_key(number)
