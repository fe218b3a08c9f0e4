"""Versions of models without a swarm: their names and numbers, what is said of them, and what is believed of it."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from prime_dht import DhtConfig, FoundPage, PrimeDHT
from prime_dht.blobs.cid import Cid
from prime_dht.entries.limits import DEFAULT_LIMITS
from prime_dht.errors import StorageError, ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.models.listing import versions_of
from prime_dht.ml.models.outgoing import Outgoing
from prime_dht.ml.models.version import (
    MAX_ID_BYTES,
    MAX_LEAP,
    ModelVersion,
    checked_id,
    copied_metadata,
    description_of,
    next_number,
    subkey_of,
    version_in,
)
from prime_dht.ml.tensors import Array, Tensors
from prime_dht.testing.storage_samples import NOW_US

ALICE, BOB = PeerId(b"alice"), PeerId(b"bob")
CID = Cid.of_raw(b"weights")
FIRST = datetime(2026, 11, 21, 18, 0, 0, 123_456, tzinfo=UTC)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=10,
)


def description(
    *, number: int = 3, metadata: object = None, first: datetime | None = None, max_bytes: int = 1 << 16
) -> bytes:
    return description_of(
        number=number,
        cid=CID,
        size_bytes=1000,
        header_bytes=104,
        parameter_count=224,
        architecture="mlp",
        model_created_at=first,
        metadata=cast(dict[str, object], metadata or {}),
        max_bytes=max_bytes,
    )


def read(value: bytes) -> ModelVersion:
    return version_in(
        "m", value, publisher=ALICE, subkey=subkey_of(3), updated_at_us=NOW_US, expires_at_us=NOW_US + 5_000_000
    )


@settings(derandomize=True, deadline=None)
@given(metadata=st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=4))
def test_what_is_said_of_a_version_is_read_as_it_was_given(metadata: dict[str, object]) -> None:
    version = read(description(metadata=metadata, first=FIRST))
    assert version.metadata == metadata
    assert (version.version, version.publisher, version.cid, version.subkey) == (3, ALICE, CID, bytes(7) + b"\3")
    assert (version.size_bytes, version.header_bytes, version.parameter_count) == (1000, 104, 224)
    assert (version.architecture, version.created_at) == ("mlp", FIRST)
    assert version.expires_at - version.updated_at == timedelta(seconds=5)


def test_the_first_version_was_made_when_the_model_was() -> None:
    version = read(description())
    assert version.created_at == version.updated_at


@pytest.mark.parametrize(
    "metadata", [{"loss": float("nan")}, {"weights": np.zeros(2)}, {"bytes": b""}, {("a", "b"): 1}, {"x": "\ud800"}]
)
def test_metadata_that_json_cannot_hold_is_refused(metadata: object) -> None:
    with pytest.raises(ValidationError, match="metadata is whatever JSON can hold"):
        description(metadata=metadata)


def test_metadata_is_copied_before_it_can_change() -> None:
    losses = [0.5]
    copied = copied_metadata({"losses": losses})
    losses.append(0.25)
    assert copied == {"losses": [0.5]}
    assert copied_metadata(None) == {}


@pytest.mark.parametrize("metadata", ["text", [1], [("a", 1)], 5])
def test_metadata_without_names_is_refused(metadata: object) -> None:
    with pytest.raises(ValidationError, match=f"metadata is names and .*, not {type(metadata).__name__}"):
        copied_metadata(cast(dict[str, object], metadata))


def test_metadata_that_would_not_stand_beside_its_header_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"takes 70,\d\d\d bytes as JSON; the limit is 65,536"):
        description(metadata={"log": "x" * 70_000}, max_bytes=DEFAULT_LIMITS.max_inline_bytes)


GOOD = json.loads(description())


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[" * 50_000,
        b"1" * 5_000,
        b"[]",
        json.dumps(GOOD | {"format": 2}).encode(),
        json.dumps(GOOD | {"metadata": {"loss": float("nan")}}).encode(),
        json.dumps(GOOD).replace('"mlp"', '"\\ud800"').encode(),
        json.dumps(GOOD).replace("{}", '{"loss": 1e999}').encode(),
        *(
            json.dumps({name: GOOD[name] for name in GOOD if name != absent}).encode()
            for absent in GOOD
            if absent != "model_created_at_us"
        ),
        *(json.dumps(GOOD | {"version": number}).encode() for number in (0, -1, True, 1.0, "1", 1 << 63)),
        *(json.dumps(GOOD | {"header_bytes": number}).encode() for number in (0, 1 << 40)),
        *(json.dumps(GOOD | {"cid": cid}).encode() for cid in (1, "", "Qm", "b" * 59)),
        json.dumps(GOOD | {"model_created_at_us": 1 << 62}).encode(),
        json.dumps(GOOD | {"model_created_at_us": "yesterday"}).encode(),
    ],
)
def test_a_description_that_breaks_a_rule_is_refused(value: bytes) -> None:
    with pytest.raises(ValidationError):
        read(value)


@settings(derandomize=True, deadline=None)
@given(value=st.binary(max_size=200) | JSON.map(lambda one: json.dumps(one).encode()))
def test_whatever_else_a_peer_says_is_refused(value: bytes) -> None:
    with pytest.raises(ValidationError):
        read(value)


def versions(*numbers: int, of: PeerId) -> list[ModelVersion]:
    return [replace(read(description(number=number)), publisher=of) for number in numbers]


def test_the_next_number_is_after_all_that_are_listed_or_taken() -> None:
    assert next_number([], own=ALICE) == 1
    assert next_number(versions(1, 7, of=ALICE) + versions(9, of=BOB), own=ALICE) == 10
    assert next_number(versions(1, of=ALICE), own=ALICE, taken=4) == 5


def test_a_stranger_cannot_use_up_the_numbers() -> None:
    greatest = (1 << 63) - 1
    assert next_number(versions(2, of=ALICE) + versions(greatest, of=BOB), own=ALICE) == 3
    assert next_number(versions(2, of=ALICE) + versions(2 + MAX_LEAP, of=BOB), own=ALICE) == 3 + MAX_LEAP


@pytest.mark.parametrize("model_id", ["m", "meta-llama/Llama-3.1", "llama:7b", "a" * MAX_ID_BYTES, "0_x/1.y/2"])
def test_ids_as_people_give_them_are_ids(model_id: str) -> None:
    assert checked_id(model_id) == model_id


@pytest.mark.parametrize(
    "model_id",
    ["", "/m", "m/", "a//b", "a/../b", ".hidden", "a b", "ü", "a\n", "a" * (MAX_ID_BYTES + 1), "a\0", None],
)
def test_what_is_no_id_is_refused_with_what_one_is(model_id: str) -> None:
    with pytest.raises(ValidationError, match="is no model id: it is 1 to 200 ASCII letters"):
        checked_id(model_id)


async def test_a_replica_that_goes_on_for_ever_with_what_was_deleted_is_not_heard_out() -> None:
    class Endless:
        config = DhtConfig(limits=replace(DEFAULT_LIMITS, max_slots_per_key=10))
        pages = 0

        async def get_all(self, *_: object, **named: object) -> FoundPage:
            self.pages += 1
            assert self.pages <= self.config.limits.max_slots_per_key
            return FoundPage((), b"%d" % self.pages)

    assert await versions_of(cast(PrimeDHT, Endless()), "m") == []


def test_arrays_are_written_to_a_file_that_leaves_nothing_behind(tmp_path: Path) -> None:
    weights: dict[str, Array] = {"w": np.zeros((3, 5), np.float32), "b": np.zeros(())}
    outgoing = Outgoing.of(weights, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    assert (outgoing.parameter_count, outgoing.size_bytes - outgoing.header_bytes) == (16, 3 * 5 * 4 + 8)
    outgoing.close()


def test_weights_are_never_in_memory_a_second_time(tmp_path: Path) -> None:
    rows = 8
    weights: dict[str, Array] = {name: np.zeros((rows, 1 << 17)) for name in "abcd"}  # of 8 MiB each
    weights["d"] = weights["d"].T  # which has to be made contiguous
    tracemalloc.start()
    try:
        Outgoing.of(weights, tmp_path).close()
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert weights["d"].nbytes <= peak_bytes < weights["d"].nbytes + (1 << 20)


def test_arrays_that_cannot_be_written_are_an_error_of_storage(tmp_path: Path) -> None:
    (tmp_path / "models").write_bytes(b"")
    with pytest.raises(StorageError, match="the weights cannot be written in"):
        Outgoing.of({"w": np.zeros(2)}, tmp_path / "models")


async def test_a_safetensors_file_is_sent_as_it_is_with_its_own_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros((3, 5), np.float32)}, path, {"format": "np"})
    outgoing = Outgoing.of(str(path), tmp_path)
    assert await outgoing.read() == path.read_bytes()
    assert (outgoing.parameter_count, outgoing.size_bytes - outgoing.header_bytes) == (15, 60)
    outgoing.close()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"PK\x03\x04archive/data.pkl", "this is a pickle"), (b"no such thing", "is not a safetensors file")],
)
def test_a_file_of_something_else_is_refused_before_anything_is_sent(
    content: bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValidationError, match=complaint):
        Outgoing.of(path, tmp_path)


def test_what_are_no_weights_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"such as model\.state_dict\(\), .*, not list"):
        Outgoing.of(cast(Tensors, [np.zeros(2)]), tmp_path)
    with pytest.raises(StorageError, match="cannot read"):
        Outgoing.of(tmp_path / "absent", tmp_path)
