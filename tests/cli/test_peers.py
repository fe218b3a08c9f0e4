"""``prime-dht peers`` and ``health``: what a newcomer sees."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from prime_dht.ids import PeerId
from prime_dht.net.address_book import split_peer_address
from prime_dht.testing.processes import Ended, running_node


def peer_of(address: str) -> str:
    return address.rpartition("/")[2]


def test_each_peer_is_shown_with_how_it_was_found_and_how_far_away_it_is(
    here: Callable[..., Ended], three_nodes: tuple[str, ...]
) -> None:
    ended = here("peers", "--peer", three_nodes[0])
    assert (ended.status, ended.err) == (0, "")
    heading, *lines = ended.out.decode().splitlines()
    assert heading.split() == ["peer", "bucket", "ms", "found", "first", "last", "replica", "address"]
    by_peer = {line.split()[0]: line.split() for line in lines}
    assert set(by_peer) == set(map(peer_of, three_nodes))
    first = by_peer[peer_of(three_nodes[0])]
    assert float(first[2]) > 0
    assert first[3] in ("bootstrap", "manual")
    assert first[-1] == three_nodes[0].partition("/p2p/")[0]
    assert by_peer[peer_of(three_nodes[1])][3] == "kad"


def test_who_is_found_on_the_local_network_is_asked_for_the_others(
    here: Callable[..., Ended], three_nodes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def open_mdns(*, found: Callable[[PeerId, tuple[bytes, ...]], None], **_: object) -> AsyncIterator[None]:
        """A local network on which one of the three is heard when the client waits for somebody."""

        async def be_heard() -> None:
            await wait_all_tasks_blocked()
            peer, address = split_peer_address(three_nodes[0])
            found(peer, (address,))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_heard)
            yield

    monkeypatch.setattr("prime_dht.node.open.open_mdns", open_mdns)
    shown = [json.loads(line)["peer"] for line in here("peers", "--mdns", "--json").out.splitlines()]
    assert set(shown) == set(map(peer_of, three_nodes))
    assert here("health", "--mdns").out.endswith(b"healthy\n")


def test_programs_get_a_line_for_each_peer(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    peers = [json.loads(line) for line in here("peers", "--peer", three_nodes[0], "--json").out.splitlines()]
    assert {known["peer"] for known in peers} == set(map(peer_of, three_nodes))
    for known in peers:
        assert 0 < known["round_trip_s"] < 60
        assert known["first_seen_us"] <= known["last_seen_us"]
        assert known["replicates"]
        assert known["connected"]


def test_a_node_that_does_not_run_still_tells_whom_it_knew(here: Callable[..., Ended], tmp_path: Path) -> None:
    with running_node() as (_, address):
        with running_node("--data-dir", str(tmp_path), "--peer", address) as (node, _):
            assert node.stop(signal.SIGTERM).status == 0
        text = here("peers", "--stored", "--data-dir", str(tmp_path)).out.decode()
        (known,) = map(json.loads, here("peers", "--data-dir", str(tmp_path), "--json").out.splitlines())
    assert peer_of(address) in text
    assert known["peer"] == peer_of(address)
    assert known["addresses"] == [address.partition("/p2p/")[0]]
    assert known["source"] == "bootstrap"
    assert known["first_seen_us"] <= known["last_seen_us"]


def test_what_is_stored_needs_a_directory_that_has_a_store(here: Callable[..., Ended], tmp_path: Path) -> None:
    assert "--stored needs --data-dir" in here("peers", "--stored").err
    ended = here("peers", "--stored", "--data-dir", str(tmp_path))
    assert (ended.status, ended.out) == (2, b"")
    assert "there is no store" in ended.err


def test_a_swarm_with_a_server_for_each_replica_is_healthy(
    here: Callable[..., Ended], three_nodes: tuple[str, ...]
) -> None:
    ended = here("health", "--peer", three_nodes[0])
    assert (ended.status, ended.err) == (0, "")
    peers, settled, answers, buckets, verdict = ended.out.decode().splitlines()
    assert peers == "peers     3 known, 3 answered, 3 can be replicas"
    assert settled.endswith(" of 3 replicas hold all that they are to store")
    assert answers.endswith(" ms, the median")
    assert buckets.startswith("buckets   ")
    assert verdict == "healthy"


def test_health_tells_when_every_replica_holds_what_it_is_to_store(
    here: Callable[..., Ended], three_nodes: tuple[str, ...]
) -> None:
    health: dict[str, object] = {}
    while not health.get("settled"):
        health = json.loads(here("health", "--peer", three_nodes[0], "--json").out)
    assert health["held"] == {peer_of(address): [512, 512] for address in three_nodes}


def test_one_server_alone_is_too_few_and_the_status_is_1(here: Callable[..., Ended]) -> None:
    with running_node() as (_, address):
        ended = here("health", "--peer", address)
        as_json = here("health", "--peer", address, "--json")
    assert ended.status == as_json.status == 1
    assert "warning   servers known: 1, fewer than the 3 replicas asked for" in ended.out.decode()
    health = json.loads(as_json.out)
    assert (health["healthy"], health["peers"], health["silent"], len(health["warnings"])) == (False, 1, [], 1)


def test_a_swarm_that_cannot_be_reached_is_a_failure(here: Callable[..., Ended]) -> None:
    ended = here("health", "--peer", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B")
    assert (ended.status, ended.out) == (2, b"")
    assert "Connection refused" in ended.err
