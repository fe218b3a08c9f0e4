"""Each operation does, from plain code, what its namesake does."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import trio

from prime_dht import (
    BlockingDHT,
    Found,
    LocalProtocolError,
    PrimeDHT,
    QueryError,
    ValidationError,
)
from prime_dht.events import LookupProgress
from prime_dht.ids import peer_from_text, peer_text, wire_key
from prime_dht.net.identity import new_identity, peer_id_of
from prime_dht.node.blobs.progress import BlobProgress

CID = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
SOMEBODYS = new_identity()
SOMEBODY, SOMEBODYS_KEY = peer_id_of(SOMEBODYS), SOMEBODYS.public_key.serialize()


def value(found: Found | None) -> bytes | None:
    return None if found is None else found.value


def test_what_is_put_is_found_until_it_is_deleted(dht: BlockingDHT) -> None:
    receipt = dht.put("operations:one", b"value", subkey=b"s", ttl=600, metadata={"a": "b"}, content_type="text/plain")
    assert receipt.acknowledged
    found = dht.get("operations:one", subkey=b"s", publisher=dht.peer_id, latest=True)
    assert found is not None
    assert (found.value, dict(found.metadata), found.content_type) == (b"value", {"a": "b"}, "text/plain")
    assert found.expires_at_us - found.created_at_us == 600_000_000
    assert value(dht.get("operations:one")) is None
    assert dht.delete("operations:one", subkey=b"s").acknowledged
    assert dht.get("operations:one", subkey=b"s") is None


def test_a_value_over_the_limit_of_entries_comes_back_whole(dht: BlockingDHT) -> None:
    content = bytes(range(256)) * 1024
    assert dht.put("operations:large", content).acknowledged
    assert value(dht.get("operations:large")) == content


def test_many_are_put_and_got_at_once_from_any_iterable(dht: BlockingDHT) -> None:
    items = {f"operations:many:{number}": b"%d" % number for number in range(20)}
    assert all(receipt.acknowledged for receipt in dht.put_many(iter(items.items()), ttl=600))
    found = dht.get_many((key for key in [*items, "operations:nobody"]), quorum=1)
    assert {key: value(one) for key, one in found.items()} == {
        **{wire_key(key): content for key, content in items.items()},
        wire_key("operations:nobody"): None,
    }


def test_pages_go_through_everything_once(dht: BlockingDHT) -> None:
    for number in range(5):
        dht.put("operations:pages", b"%d" % number, subkey=b"%d" % number)
    assert len(dht.get_all("operations:pages", subkeys=[b"1", b"2"], publishers=[dht.peer_id])) == 2
    pages = list(dht.pages("operations:pages", limit=2))
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [found.value for page in pages for found in page] == [b"0", b"1", b"2", b"3", b"4"]


def test_records_are_found_and_bad_ones_refused(dht: BlockingDHT) -> None:
    assert dht.get_record(b"/pk/" + SOMEBODY) is None
    with pytest.raises(ValidationError):
        dht.put_record(b"/pk/" + SOMEBODY, b"no key")
    assert len(dht.put_record(b"/pk/" + SOMEBODY, SOMEBODYS_KEY).stored_by) == 3
    assert dht.get_record(b"/pk/" + SOMEBODY, quorum=1) == SOMEBODYS_KEY


def test_providers_are_found_and_who_does_not_listen_cannot_be_one(dht: BlockingDHT) -> None:
    assert dht.find_providers(CID, count=3) == []
    with pytest.raises(LocalProtocolError, match="does not listen"):
        dht.provide(CID)
    dht.stop_providing(CID)


def test_peers_are_found_asked_and_compared_with(dht: BlockingDHT, swarm: tuple[str, ...]) -> None:
    server = peer_from_text(swarm[0].rpartition("/")[2])
    assert dht.bootstrap() == 3
    assert dht.add_peer(swarm[0]) == server
    assert server in {status.peer for status in dht.peers()}
    assert server in {contact.peer for contact in dht.find_closest("operations:one").closest}
    assert dht.ping(server) > 0
    assert dht.holding_of(server).sectors > 0
    info = dht.find_peer(peer_text(server))
    assert info is not None
    assert info.peer_id.to_bytes() == server


def test_a_client_tells_how_it_is(dht: BlockingDHT) -> None:
    health = dht.health()
    assert (health.mode, health.peer_id, health.healthy) == ("client", peer_text(dht.peer_id), True)
    assert dht.stats().requests_sent > 0
    assert dht.cleanup_expired().values_dropped == 0
    assert dht.addresses() == []


def test_events_are_waited_for(dht: BlockingDHT) -> None:
    with dht.subscribe() as events:
        dht.find_closest("operations:events")
        event = events.next()
        assert isinstance(event, LookupProgress)
        assert all(isinstance(event, LookupProgress) for _, event in zip(range(2), events, strict=False))
        assert events.dropped == 0


def test_a_call_that_is_not_done_in_time_is_a_query_error_and_is_cancelled(dht: BlockingDHT) -> None:
    gone = threading.Event()

    async def never(_: PrimeDHT) -> None:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()

    with pytest.raises(QueryError, match=r"not done within 0\.01 s"):
        dht.call(never, timeout=0.01)
    assert gone.is_set()


@pytest.mark.parametrize("number", [np.float16, np.float32])
def test_times_may_be_of_numpys_narrow_floats(dht: BlockingDHT, number: Callable[[float], float]) -> None:
    async def never(_: PrimeDHT) -> None:
        await trio.sleep_forever()

    with pytest.raises(QueryError, match="not done within"):
        dht.call(never, timeout=number(0.01))
    receipt = dht.put("operations:narrow", b"value", ttl=number(60))
    assert receipt.expires_at_us - receipt.created_at_us == 60_000_000


def test_a_single_key_is_not_taken_for_many(dht: BlockingDHT) -> None:
    for key in ("operations:one", b"operations:one"):
        with pytest.raises(ValidationError, match="keys are to be in a list"):
            dht.get_many(key)  # type: ignore[arg-type]  # text is an iterable of text
    with pytest.raises(ValidationError, match="keys are to be in a list"):
        dht.get_many(3)  # type: ignore[call-overload]


def test_what_was_found_can_be_handed_to_another_process(dht: BlockingDHT) -> None:
    dht.put("operations:handed on", b"value", metadata={"a": "b"})
    found, page = dht.get("operations:handed on"), dht.get_all("operations:handed on")
    assert pickle.loads(pickle.dumps((found, page))) == (found, page)


def test_a_buffer_may_change_when_a_put_that_nobody_waits_for_has_begun(dht: BlockingDHT) -> None:
    buffer: Any = bytearray(b"before")
    view: Any = memoryview(buffer)

    async def keep_busy(_: PrimeDHT) -> None:
        begun.set()
        may_end.wait()  # so that nothing is done in the node's thread meanwhile

    begun, may_end = threading.Event(), threading.Event()
    busy = dht.call(keep_busy, wait=False)
    begun.wait()
    puts: list[Future[Any]] = [
        dht.put("operations:buffer", buffer, wait=False),
        dht.put("operations:view", view, wait=False),
        dht.put_many({"operations:buffers": buffer}, wait=False),
        dht.put_many([("operations:pairs", buffer)], wait=False),
    ]
    added = dht.blobs.add(buffer, wait=False)
    buffer[:] = b"behind"
    may_end.set()
    busy.result()
    for put in puts:
        put.result()
    found = dht.get_many(["operations:buffer", "operations:view", "operations:buffers", "operations:pairs"])
    assert [value(one) for one in found.values()] == [b"before"] * 4
    blob = added.result().blob
    assert blob is not None
    assert dht.blobs.fetch(blob.cid) == b"before"


def test_what_else_was_given_may_change_when_a_call_that_nobody_waits_for_has_begun(dht: BlockingDHT) -> None:
    async def keep_busy(_: PrimeDHT) -> None:
        begun.set()
        may_end.wait()  # so that nothing is done in the node's thread meanwhile

    dht.put("operations:given:0", b"value", subkey=b"0")
    key: Any = bytearray(b"operations:given:0")
    subkey: Any = bytearray(b"0")
    metadata = {"step": "0"}
    begun, may_end = threading.Event(), threading.Event()
    named, names, by_name = [dht.peer_id], [b"0"], {dht.peer_id: 0}
    busy = dht.call(keep_busy, wait=False)
    begun.wait()
    put = dht.put(key, b"value", subkey=subkey, metadata=metadata, wait=False)
    many = dht.put_many([(key, b"value")], wait=False)
    got = dht.get("operations:given:0", subkey=b"0", trusted=named, wait=False)
    got_many = dht.get_many([key], wait=False)
    page = dht.get_all("operations:given:0", subkeys=names, publishers=by_name.keys(), wait=False)
    key[-1:], subkey[:], metadata["step"], named[:], names[:] = b"1", b"1", "1", [SOMEBODY], [b"1"]
    by_name.clear()
    may_end.set()
    busy.result()
    receipt = put.result()
    assert (receipt.key, receipt.subkey) == (wire_key("operations:given:0"), b"0")
    assert [receipt.key for receipt in many.result()] == [wire_key("operations:given:0")]
    found = dht.get("operations:given:0", subkey=b"0", latest=True)
    assert found is not None
    assert found.metadata == {"step": "0"}
    assert value(got.result()) == b"value"
    assert list(got_many.result()) == [wire_key("operations:given:0")]
    assert [one.subkey for one in page.result()] == [b"0"]


@pytest.mark.parametrize("error", [SystemExit("enough"), KeyboardInterrupt()])
def test_whatever_a_callback_raises_ends_its_call_and_not_the_node(dht: BlockingDHT, error: BaseException) -> None:
    def stop(_: BlobProgress) -> None:
        raise error

    with pytest.raises(type(error)):
        dht.blobs.add(bytes(3 << 20), progress=stop)
    assert dht.blobs.add(bytes(3 << 20), progress=stop, wait=False).exception() is error
    assert len(dht.peers()) == 3


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none_is_refused(dht: BlockingDHT, timeout: float) -> None:
    with pytest.raises(ValidationError, match="timeout must be a positive number"):
        dht.peers(timeout=timeout)


def test_an_error_shows_where_it_was_raised_and_where_the_call_was_made(dht: BlockingDHT) -> None:
    with pytest.raises(ValidationError, match="a key cannot be empty") as caught:
        dht.put("", b"")
    names = [entry.frame.code.name for entry in caught.traceback]
    assert names[0] == "test_an_error_shows_where_it_was_raised_and_where_the_call_was_made"
    assert names[-1] == "wire_key"


def test_a_call_has_all_of_the_asynchronous_node(dht: BlockingDHT) -> None:
    async def both(node: PrimeDHT) -> list[bytes | None]:
        found: list[bytes | None] = []

        async def one(name: str) -> None:
            await node.put(name, b"value")
            found.append(value(await node.get(name)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "operations:a")
            nursery.start_soon(one, "operations:b")
        return found

    assert dht.call(both) == [b"value", b"value"]
    future: Future[list[bytes | None]] = dht.call(both, wait=False)
    assert future.result() == [b"value", b"value"]
