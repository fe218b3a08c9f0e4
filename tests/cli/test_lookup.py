"""``prime-dht lookup``: the way, hop by hop."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

from trio.testing import wait_all_tasks_blocked

from prime_dht.cli.client import Session
from prime_dht.cli.commands.lookup import _lookup
from prime_dht.events import LookupProgress
from prime_dht.ids import KadKey, PeerId, kad_key, peer_from_text, wire_key
from prime_dht.kad.lookup import LookupResult, Outcome
from prime_dht.node.feed import Feed
from prime_dht.testing.processes import PRIME_DHT, Ended, running


def peer_of(address: str) -> str:
    return address.rpartition("/")[2]


def test_each_hop_says_who_named_it_how_far_it_is_and_how_long_it_took(
    here: Callable[..., Ended], three_nodes: tuple[str, ...]
) -> None:
    ended = here("lookup", "model:digits", "--peer", three_nodes[0])
    assert (ended.status, ended.err) == (0, "")
    heading, *hops, _, _, first, second, third = ended.out.decode().splitlines()
    assert heading.split() == ["hop", "peer", "named", "by", "bits", "distance", "ms", "outcome"]
    assert len(hops) == 3
    for hop in hops:
        assert re.fullmatch(r" +\d  …\w{8}  (our table|…\w{8}) +\d+  [0-9a-f]{12} +\d+\.\d  answered, named \d", hop), (
            hop
        )
    closest = [line.split()[0] for line in (first, second, third)]
    target = kad_key(wire_key("model:digits"))
    assert closest == sorted(map(peer_of, three_nodes), key=lambda peer: kad_key(peer_from_text(peer)) ^ target)


def test_programs_get_a_line_for_each_hop_and_one_for_the_end(
    here: Callable[..., Ended], three_nodes: tuple[str, ...]
) -> None:
    peer = peer_of(three_nodes[1])
    ended = here("lookup", peer, "--peer", three_nodes[0], "--json")
    *hops, end = map(json.loads, ended.out.splitlines())
    assert {hop["peer"] for hop in hops} == set(map(peer_of, three_nodes))
    itself = next(hop for hop in hops if hop["peer"] == peer)
    assert (itself["shared_bits"], itself["distance"], itself["failure"]) == (256, "0" * 64, None)
    assert (end["outcome"], end["asked"]) == ("exhausted", 3)
    assert end["closest"][0]["peer"] == peer
    assert end["closest"][0]["addresses"]


def test_who_reads_no_further_ends_it_as_any_program(three_nodes: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with (
        open(writing, "wb") as nobody_reads,
        running(*PRIME_DHT, "lookup", "key", "--json", "--peer", three_nodes[0], stdout=nobody_reads) as command,
    ):
        ended = command.end()
    assert (ended.status, ended.err) == (128 + signal.SIGPIPE, "")


def test_an_empty_key_is_a_mistake(here: Callable[..., Ended]) -> None:
    assert here("lookup", "") == Ended(
        2, b"", "prime-dht: Invalid value for 'KEY|PEER-ID': a key cannot be empty (see prime-dht lookup --help)\n"
    )


def test_a_key_that_nobody_looks_up_has_no_heading(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    ended = here("lookup", "/prime/", "--peer", three_nodes[0])
    assert (ended.status, ended.out) == (2, b"")


async def test_who_failed_and_answered_when_it_was_asked_once_more_has_a_line_for_each() -> None:
    feed = Feed()
    key = b"/prime/key"
    shown: list[object] = []

    async def find_closest(_target: object) -> LookupResult:
        await wait_all_tasks_blocked()
        for failure in ("nobody is there", "", ""):
            feed.publish(
                LookupProgress(
                    target=kad_key(key),
                    peer=PeerId(b"peer"),
                    told_by=None,
                    depth=1,
                    distance=1,
                    elapsed_s=0.0,
                    heard_of=0,
                    failure=failure,
                )
            )
        await wait_all_tasks_blocked()
        return LookupResult(
            target=KadKey(0), outcome=Outcome.CONVERGED, closest=(), path=(), started_at_s=0.0, ended_at_s=0.0
        )

    @asynccontextmanager
    async def joined() -> AsyncGenerator[object]:
        yield SimpleNamespace(subscribe=feed.subscribe, find_closest=find_closest)

    session = SimpleNamespace(as_json=True, joined=joined, show=lambda hop, _text: shown.append(hop["failure"]))
    await _lookup(cast("Session", session), key)
    assert shown == ["nobody is there", None]
