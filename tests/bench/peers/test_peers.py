"""The comparison by itself: the load on a swarm made of dictionaries, the arithmetic, and peers that do not work."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from . import __main__ as comparison
from .load import NODES, Scale, measure


class Dictionaries:
    """A swarm of which each value has one holder."""

    name = "dictionaries"

    def __init__(self) -> None:
        self.values: dict[str, tuple[int, bytes]] = {}
        self.gets: list[tuple[int, str]] = []

    async def put(self, node: int, key: str, value: bytes) -> None:
        self.values[key] = (node, value)

    async def get(self, node: int, key: str) -> bytes | None:
        self.gets.append((node, key))
        return self.values[key][1]

    def holds(self, node: int, key: str) -> bool:
        return self.values[key][0] == node


def test_every_peer_is_measured_putting_and_getting_singly_and_with_32_in_flight() -> None:
    peer = Dictionaries()
    rows = asyncio.run(measure(peer, Scale(rounds=2, operations=5)))
    assert [(row["operation"], row["in_flight"]) for row in rows] == [("put", 1), ("get", 1), ("put", 32), ("get", 32)]
    assert len(peer.values) == 2 * 2 * 5
    assert all(0 <= node < NODES and not peer.holds(node, key) for node, key in peer.gets)


def test_a_peer_that_returns_the_wrong_value_fails() -> None:
    class Liar(Dictionaries):
        async def get(self, node: int, key: str) -> bytes | None:
            return b"something else"

    with pytest.raises(RuntimeError, match="bench:0 was put and not found"):
        asyncio.run(measure(Liar(), Scale(rounds=1, operations=1)))


def test_a_package_that_pip_does_not_find_is_unavailable_with_pips_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package = comparison.Package(name="nothing", requirement="prime-dht-no-such-peer", module="none", size="none")
    with pytest.raises(comparison.UnavailableError, match=r"pip cannot install it: .*prime-dht-no-such-peer"):
        comparison._install(package)
    assert not (tmp_path / "nothing" / ".installed").exists()


def test_ours_is_compared_by_operations_per_second_with_the_aim_beside_it() -> None:
    def run(per_s: float) -> dict[str, object]:
        rows = [
            {"operation": name, "in_flight": n, "p50_ms": 1.0, "p99_ms": 2.0, "per_s": per_s, "cpu_ms": 1.0}
            for name in comparison.OURS.values()
            for n in (1, 32)
        ]
        return {"tables": {"operations": {"rows": rows}, "kad_dht": {"rows": [{"operation": "none", "why": "down"}]}}}

    theirs = {"package": "opendht", "peer": "OpenDHT (4)", "operation": "put", "in_flight": 1}
    theirs |= {"p50_ms": 1.0, "p99_ms": 1.0, "per_s": 100.0, "cpu_ms": 1.0}
    *ours, row = comparison._compare([run(100.0), run(200.0)], [theirs])
    assert [(one["operation"], one["per_s"]) for one in ours] == [("put", 150.0)] * 2 + [("get", 150.0)] * 2
    assert (row["ours_times_theirs"], row["aim_at_least"]) == (1.5, 1.0)
