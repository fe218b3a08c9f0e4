"""Chunkers: the same chunks however content arrives, and shared chunks where checkpoints share tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from prime_dht.blobs.build import BlobBuilder
from prime_dht.blobs.chunking import CHUNK_BYTES, CHUNKERS, Chunker, FixedChunker, TensorChunker
from prime_dht.blobs.cid import Cid
from prime_dht.blobs.tensors import MAX_GROUP_BYTES, MAX_HEADER_BYTES, spans_of

Tensors = Mapping[str, NDArray[np.float32]]


def chunks_of(chunker: Chunker, pieces: Iterable[bytes]) -> list[bytes]:
    return [chunk for piece in pieces for chunk in chunker.feed(piece)] + chunker.finish()


def checkpoint(sizes: Mapping[str, int], *, seed: int = 0, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of random tensors of so many bytes; a tensor depends on its name and the seed alone."""
    tensors = {
        name: np.frombuffer(Random(f"{name} {seed}").randbytes(size), np.float32) for name, size in sizes.items()
    }
    return save(tensors, metadata)


def blocks_of(chunker: Chunker, content: bytes) -> dict[Cid, int]:
    """The blocks of a blob, nodes included, and their sizes."""
    builder = BlobBuilder(chunker)
    return {block.cid: len(block.data) for block in builder.feed(content) + builder.finish()}


def moved_bytes(name: str, before: bytes, after: bytes) -> int:
    """What must be fetched to have the one blob where the other is."""
    had = blocks_of(CHUNKERS[name](), before)
    return sum(size for cid, size in blocks_of(CHUNKERS[name](), after).items() if cid not in had)


def with_new_tensor(file: bytes, name: str) -> bytes:
    """The file with another content of one tensor."""
    data_start = 8 + int.from_bytes(file[:8], "little")
    start, stop = (data_start + int(offset) for offset in json.loads(file[8:data_start])[name]["data_offsets"])
    return file[:start] + Random(1).randbytes(stop - start) + file[stop:]


def header_of(tensors: Mapping[str, object]) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header


TEN = {f"layer.{index}.weight": 2_500_000 for index in range(10)}
FILE = checkpoint(TEN)
SMALL_FILE = checkpoint({f"t{index}": 4 * (index % 7) * 40 + 4 for index in range(60)})


@pytest.mark.parametrize("name", CHUNKERS)
@given(rng=st.randoms(use_true_random=False), content=st.sampled_from([FILE[:5_000_000], SMALL_FILE, b"", b"1234567"]))
@settings(derandomize=True, deadline=None, max_examples=20)
def test_chunks_do_not_depend_on_how_content_is_fed(name: str, rng: Random, content: bytes) -> None:
    cuts = [0, *sorted(rng.randrange(len(content) + 1) for _ in range(rng.randrange(40))), len(content)]
    pieces = [content[start:stop] for start, stop in pairwise(cuts)]
    chunks = chunks_of(CHUNKERS[name](), pieces)
    assert b"".join(chunks) == content
    assert all(0 < len(chunk) <= CHUNK_BYTES for chunk in chunks) or chunks == [b""]
    assert chunks == chunks_of(CHUNKERS[name](), [content])


def test_content_that_comes_byte_by_byte_has_the_same_chunks() -> None:
    assert chunks_of(TensorChunker(), (bytes((byte,)) for byte in SMALL_FILE)) == chunks_of(
        TensorChunker(), [SMALL_FILE]
    )


def test_a_tensor_has_chunks_of_its_own_counted_from_its_beginning() -> None:
    header_bytes = 8 + int.from_bytes(FILE[:8], "little")
    expected = [header_bytes, *[CHUNK_BYTES, CHUNK_BYTES, 2_500_000 - 2 * CHUNK_BYTES] * 10]
    assert [len(chunk) for chunk in chunks_of(TensorChunker(), [FILE])] == expected


def test_two_checkpoints_that_differ_in_one_tensor_of_ten_share_all_others() -> None:
    other = with_new_tensor(FILE, "layer.5.weight")
    assert 2_500_000 < moved_bytes("safetensors-1", FILE, other) < 2_503_000
    one_byte = FILE[: len(FILE) // 2] + b"!" + FILE[len(FILE) // 2 + 1 :]
    assert moved_bytes("safetensors-1", FILE, one_byte) < CHUNK_BYTES + 3000


def test_a_header_of_another_size_moves_only_itself_and_the_root() -> None:
    larger = checkpoint(TEN, metadata={"step": "1" * 500})
    assert moved_bytes("safetensors-1", FILE, larger) < 5000
    assert moved_bytes("size-1048576", FILE, larger) > 25_000_000


def test_a_tensor_inserted_in_the_middle_moves_only_itself_the_header_and_the_root() -> None:
    longer = checkpoint(TEN | {"layer.4.bias": 1_000_000})
    assert 1_000_000 < moved_bytes("safetensors-1", FILE, longer) < 1_005_000
    assert moved_bytes("size-1048576", FILE, longer) > 12_000_000


def test_a_small_tensor_inserted_among_ten_thousand_moves_a_few_groups() -> None:
    sizes = {f"block.{index:05}.scale": 800 for index in range(10_000)}
    before = checkpoint(sizes)
    after = checkpoint(sizes | {"block.00100.bias": 800})
    header_bytes = int.from_bytes(after[:8], "little")
    leaves = blocks_of(TensorChunker(), after)
    assert len(leaves) < 1000
    assert moved_bytes("safetensors-1", before, after) < header_bytes + 60 * len(leaves) + 2 * MAX_GROUP_BYTES


def test_small_tensors_share_chunks_up_to_a_bound() -> None:
    sizes = {f"t{index:04}": 4000 for index in range(1000)}
    lengths = [len(chunk) for chunk in chunks_of(TensorChunker(), [checkpoint(sizes)])]
    assert max(lengths[1:]) <= MAX_GROUP_BYTES
    assert 1000 / 16 < len(lengths) < 1000 / 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05",
        b"plain text that is no safetensors file at all",
        (1 << 63).to_bytes(8, "little") + b"{}",  # a length that is a lie
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(MAX_HEADER_BYTES + 1),
        (100).to_bytes(8, "little") + b"{}",  # the file ends within the header
        header_of({"a": {"data_offsets": [0, 8]}, "b": {"data_offsets": [4, 12]}}) + bytes(12),  # an overlap
        header_of({"a": {"data_offsets": [0, 8]}, "b": {"data_offsets": [9, 12]}}) + bytes(12),  # a gap
        header_of({"a": {"data_offsets": [0, -8]}}),
        header_of({"a": {"data_offsets": [0, True]}}),
        header_of({"a": {"data_offsets": [0, 1 << 62]}}),
        header_of({"a": {"data_offsets": [0]}}),
        header_of({"a": {"data_offsets": "0"}}),
        header_of({"a": []}),
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b'{"\xff',
        (8).to_bytes(8, "little") + b'"\\ud800"',
        (1 << 20).to_bytes(8, "little") + b"[" * (1 << 20),  # nested
        (1 << 20).to_bytes(8, "little") + b"1" * (1 << 20),  # a number of a million digits
        header_of({"a": {"data_offsets": [0, 8]}, "\ud800": {"data_offsets": [8, 16]}}) + bytes(16),
    ],
)
def test_what_is_no_safetensors_file_is_cut_as_the_fixed_chunker_does(content: bytes) -> None:
    content += bytes(2_000_000)
    assert chunks_of(TensorChunker(), [content]) == chunks_of(FixedChunker(), [content])


def test_a_tensor_that_claims_more_than_there_is_ends_with_the_content() -> None:
    content = header_of({"a": {"data_offsets": [0, 1 << 61]}}) + bytes(3_000_000)
    lengths = [len(chunk) for chunk in chunks_of(TensorChunker(), [content])]
    assert lengths[1:] == [CHUNK_BYTES, CHUNK_BYTES, 3_000_000 - 2 * CHUNK_BYTES]


def test_what_lies_behind_the_last_tensor_is_cut_from_there() -> None:
    content = checkpoint({"a": 4096}) + bytes(2_000_000)
    lengths = [len(chunk) for chunk in chunks_of(TensorChunker(), [content])]
    assert lengths[1:] == [4096, CHUNK_BYTES, 2_000_000 - CHUNK_BYTES]


def test_a_million_tensors_are_not_read() -> None:
    tensors = (f'"{index}":{{"data_offsets":[{index},{index + 1}]}}' for index in range(1_000_000))
    header = f"{{{','.join(tensors)}}}".encode()
    assert len(header) > MAX_HEADER_BYTES
    content = len(header).to_bytes(8, "little") + header + bytes(1_000_000)
    assert chunks_of(TensorChunker(), [content]) == chunks_of(FixedChunker(), [content])


def test_empty_tensors_and_metadata_make_no_spans() -> None:
    header = {"__metadata__": {"format": "pt"}, "a": {"data_offsets": [0, 0]}, "b": {"data_offsets": [0, 9000]}}
    raw = json.dumps(header).encode()
    assert spans_of(raw) == [8 + len(raw), 9000]
