"""``prime-dht ping``, as ping(8) is to hosts."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Callable

from prime_dht.testing.processes import PRIME_DHT, Ended, running_warm

NOBODY = "12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


def peer_of(address: str) -> str:
    return address.rpartition("/")[2]


def test_a_multiaddr_is_pinged_without_joining(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    ended = here("ping", three_nodes[0], "--count", "2", "--interval", "0.01")
    assert (ended.status, ended.err) == (0, "")
    first, second, summary = ended.out.decode().splitlines()
    assert re.fullmatch(r"answer 1: \d+\.\d ms", first)
    assert re.fullmatch(r"answer 2: \d+\.\d ms", second)
    assert re.fullmatch(r"2 asked, 2 answered, 0% lost; min/avg/max \d+\.\d/\d+\.\d/\d+\.\d ms", summary)


def test_a_peer_is_found_by_its_id_alone(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    ended = here("ping", peer_of(three_nodes[2]), "--peer", three_nodes[0], "--count", "1", "--json")
    assert (ended.status, ended.err) == (0, "")
    answer, summary = map(json.loads, ended.out.splitlines())
    assert answer["ping"] == 1
    assert 0 < answer["round_trip_s"] == summary["min_s"] == summary["avg_s"] == summary["max_s"]
    assert (summary["asked"], summary["answered"]) == (1, 1)


def test_a_peer_that_nobody_knows_is_not_found(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    ended = here("ping", NOBODY, "--peer", three_nodes[0])
    assert (ended.status, ended.out) == (1, b"")
    assert ended.err == f"prime-dht: not found: nobody who was asked knows the peer {NOBODY}\n"


def test_where_nobody_listens_each_ping_says_why_and_the_status_is_1(here: Callable[..., Ended]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ended = here("ping", f"/ip4/127.0.0.1/tcp/{port}/p2p/{NOBODY}", "--count", "2", "--interval", "0.01")
    assert (ended.status, ended.err) == (1, "")
    first, second, summary = ended.out.decode().splitlines()
    assert "no answer 1: " in first
    assert "Connection refused" in first
    assert "Connection refused" in second, "it is dialled again each time"
    assert summary == "2 asked, 0 answered, 100% lost"


def test_another_peer_at_the_address_is_no_answer(here: Callable[..., Ended], three_nodes: tuple[str, ...]) -> None:
    address = three_nodes[0].replace(peer_of(three_nodes[0]), NOBODY)
    ended = here("ping", address, "--count", "1")
    assert ended.status == 1
    assert ended.out.endswith(b"1 asked, 0 answered, 100% lost\n")


def test_ctrl_c_ends_it_with_the_summary(three_nodes: tuple[str, ...]) -> None:
    with running_warm(*PRIME_DHT, "ping", three_nodes[0], "--interval", "60") as pinging:
        assert pinging.line().startswith("answer 1: ")
        ended = pinging.stop(signal.SIGINT)
    assert (ended.status, ended.err) == (130, "")
    assert ended.out.startswith(b"1 asked, 1 answered, 0% lost; ")
