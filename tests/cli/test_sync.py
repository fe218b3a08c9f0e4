"""``prime-dht sync``: one round with a node that runs in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prime_dht.testing.processes import Ended, running_node

Here = Callable[..., Ended]


def synced(ended: Ended) -> dict[str, object]:
    assert (ended.status, ended.err) == (0, "")
    result = json.loads(ended.out)
    assert isinstance(result, dict)
    return result


def test_two_stores_with_different_entries_are_equal_after_one_round(here: Here, tmp_path: Path) -> None:
    """The entries of one node get to another that never meets it, on a store that one command after the other opens."""
    directory = str(tmp_path / "between")
    with running_node() as (_, first):
        for name in ("a", "b", "c"):
            assert here("put", name, "value", "--peer", first).status == 0
        dry_run = here("sync", first, "--data-dir", directory, "--dry-run", "--json")
        assert dry_run.status == 1, "for all of it is left to do"
        compared = json.loads(dry_run.out)
        assert (compared["ending"], compared["only_here"], compared["only_there"]) == ("compared", 0, 3)
        assert (compared["sectors"], compared["stored"]) == (512, 0)
        moved = synced(here("sync", first, "--data-dir", directory, "--json"))
        assert (moved["ending"], moved["entries_received"], moved["stored"]) == ("equal", 3, 3)
        again = here("sync", first, "--data-dir", directory)
        assert (again.status, again.err) == (0, "")
        assert b"only here 0, only there 0\n" in again.out
        nothing_left = here("sync", first, "--data-dir", directory, "--dry-run")
        assert nothing_left.status == 0
        assert nothing_left.out.startswith(b"compared, 512 sectors, with ")
    with running_node() as (_, second):
        assert here("put", "d", "value", "--peer", second).status == 0
        both_ways = synced(here("sync", second, "--data-dir", directory, "--json"))
        assert (both_ways["entries_sent"], both_ways["stored"]) == (3, 1)
        found = here("get", "b", "--peer", second)
        assert (found.status, found.out) == (0, b"value")


def test_a_node_of_another_network_is_not_synced_with(here: Here) -> None:
    with running_node("--network", "lab") as (_, address):
        ended = here("sync", address)
    assert (ended.status, ended.out) == (2, b"")
    assert "of another network" in ended.err


def test_a_node_with_other_network_parameters_refuses_in_one_line(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = tmp_path / "node.toml"
    configured.write_text('[dht]\nunit_s = "5m"\nsector_bits = 12\nlimits.max_ttl_s = "7d"\n')
    with running_node("--config", str(configured)) as (_, address):
        ended = here("sync", address)
        assert (ended.status, ended.err) == (1, "")
        said = ended.out.decode()
        assert said.startswith("refused(other network parameters): ")
        assert said.endswith(" has unit 5m, not 15m; sector_bits 12, not 9; max_ttl 7d, not 30d\n")
        assert json.loads(here("sync", address, "--json").out)["refusal"] == "other network parameters"
        monkeypatch.setenv("PRIME_DHT_CONFIG", str(configured))
        assert synced(here("sync", address, "--json"))["sectors"] == 4096
