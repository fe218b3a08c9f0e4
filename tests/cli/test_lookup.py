"""``prime-dht lookup``: the way, hop by hop."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable

from prime_dht.ids import kad_key, peer_from_text, wire_key
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
