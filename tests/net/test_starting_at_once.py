"""Whole nodes on real hosts that start at one moment: they all join, and what that takes is counted."""

from __future__ import annotations

from contextlib import AsyncExitStack
from random import Random

import pytest
import trio
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.security.noise import messages, patterns
from trio.testing import MockClock

from prime_dht import PrimeDHT
from prime_dht.net.hardening.parts import parts_of
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.identity import new_identity

NODES = 30


async def test_thirty_nodes_that_start_at_once_join_and_answer_without_a_storm(
    monkeypatch: pytest.MonkeyPatch, patient_clock: MockClock
) -> None:
    identifies = signatures = 0
    stock_sign = messages.make_handshake_payload_sig

    def sign(*arguments: object) -> bytes:
        nonlocal signatures
        signatures += 1
        return stock_sign(*arguments)  # type: ignore[arg-type]

    async def count_identify(_stream: object) -> None:
        nonlocal identifies
        identifies += 1

    monkeypatch.setattr(patterns, "make_handshake_payload_sig", sign)
    with trio.fail_after(60):
        async with AsyncExitStack() as stack:
            hosts = [
                parts_of(
                    await stack.enter_async_context(
                        open_host(HostSettings(key_pair=new_identity(), listen=("/ip4/127.0.0.1/tcp/0",)))
                    )
                )[0]
                for _ in range(NODES)
            ]
            for host in hosts:
                host.set_stream_handler(IDENTIFY, count_identify)
            first = await stack.enter_async_context(PrimeDHT(hosts[0], rng=Random(0)))
            rest = [
                await stack.enter_async_context(PrimeDHT(host, bootstrap_peers=first.addresses(), rng=Random(number)))
                for number, host in enumerate(hosts[1:], 1)
            ]
            # Nodes that join at one moment can miss each other; by themselves they look again some seconds later.
            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    for node in rest:
                        nursery.start_soon(node.bootstrap)
            nodes = [first, *rest]
            for number, node in enumerate(nodes):
                await node.put(f"key {number}", b"value %d" % number)
            for number, node in enumerate(reversed(nodes)):
                found = await node.get(f"key {number}")
                assert found is not None
                assert found.value == b"value %d" % number
            ends = [len(host.get_network().get_connections()) for host in hosts]
            pairs = sum(len(host.get_network().get_connections_map()) for host in hosts)
            assert sum(ends) <= 1.25 * pairs, "few pairs have dialled each other at one moment"
            requests = sum([(await node.stats()).requests_sent for node in nodes])
            assert requests <= NODES * 80, "to join twice, and two operations, take some 70 of each"
            assert identifies == 0
            assert signatures == NODES, "one for each host, not two for each connection"
