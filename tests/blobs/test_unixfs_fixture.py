"""The same content has the same CID as in IPFS: compared with what ``tests/interop/unixfs`` had its importer make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR

from prime_dht.blobs.build import BlobBuilder, DagBuilder
from prime_dht.blobs.chunking import FixedChunker
from prime_dht.blobs.cid import Cid

FIXTURE = json.loads((Path(__file__).parents[1] / "interop" / "unixfs" / "unixfs_v1_2025.json").read_text())
SMALL = FIXTURE["small"]
PIECE_BYTES = 1_000_003
"""What content is fed in: not a divisor of any chunk."""


def content(size: int) -> Iterator[bytes]:
    """The first ``size`` bytes of the AES-128-CTR key stream of a zero key and a zero counter block."""
    cipher = Cipher(AES128(bytes(16)), CTR(bytes(16))).encryptor()
    zeros = bytes(PIECE_BYTES)
    for start in range(0, size, PIECE_BYTES):
        yield cipher.update(zeros[: size - start])


@pytest.mark.parametrize(("size", "cid"), FIXTURE["cid_by_size"].items())
def test_content_has_the_cid_that_ipfs_gives_it(size: str, cid: str) -> None:
    builder = BlobBuilder(FixedChunker())
    for piece in content(int(size)):
        builder.feed(piece)
    builder.finish()
    assert str(builder.root) == cid
    assert builder.size == int(size)


@pytest.mark.parametrize(("chunks", "cid"), SMALL["cid_by_chunks"].items())
def test_trees_of_any_depth_and_width_have_the_shape_that_ipfs_gives_them(chunks: str, cid: str) -> None:
    chunk_bytes = SMALL["chunk_bytes"]
    data = b"".join(content(int(chunks) * chunk_bytes))
    builder = DagBuilder(links_per_node=SMALL["links_per_node"])
    for start in range(0, len(data), chunk_bytes):
        builder.add(Cid.of_raw(data[start : start + chunk_bytes]), chunk_bytes)
    root, _ = builder.finish()
    assert str(root) == cid
