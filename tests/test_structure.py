"""What import-linter cannot say of the layers: which parts of libp2p a package may touch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import prime_dht

ROOT = Path(prime_dht.__file__).parent
KEYS_AND_ENVELOPES = ("libp2p.crypto", "libp2p.peer.id", "libp2p.peer.envelope", "libp2p.records")


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("package", ["blobs", "entries", "kad", "partition", "wire", "storage"])
def test_below_net_only_keys_and_envelopes_of_libp2p_are_used(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        for module in imported_modules(path):
            if module.split(".")[0] == "libp2p":
                assert module.startswith(KEYS_AND_ENVELOPES), f"{path.name} imports {module}"


def test_no_file_is_longer_than_500_lines() -> None:
    for folder in (ROOT, ROOT.parent / "tests", ROOT.parent / "examples"):
        for path in folder.rglob("*.py"):
            if "pb" not in path.parts:
                assert len(path.read_text().splitlines()) <= 500, path
