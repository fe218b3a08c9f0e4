"""Every decoder, fed what was valid once: it reads it, or raises its documented error, and nothing else.

What was read is written and read again, which must give the same. Inputs are damaged by
:func:`prime_dht.testing.hostile.damaged` under Hypothesis' control, so a failure shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from multiaddr import Multiaddr

from prime_dht.entries.access import group_key, key_rule, own_key
from prime_dht.entries.admission import AdmissionRules, Admitted, admit
from prime_dht.entries.capability import check_capability, decode_capability, grant, root_of
from prime_dht.entries.codec import decode_entry, decode_entry_set, decode_header, encode_entry_set, encode_header
from prime_dht.entries.entry import Entry
from prime_dht.entries.envelope import ENTRY, open_envelope
from prime_dht.entries.validators import ValidatorRegistry
from prime_dht.errors import ConfigError, RemoteProtocolError, ValidationError
from prime_dht.ids import Key, PeerId, TimestampUs, is_peer_id, namespace_of, peer_from_text, peer_text
from prime_dht.net.address_book import canonical_address, split_peer_address
from prime_dht.net.addresses import address_text, is_address_of
from prime_dht.net.identity import load_or_create_identity, new_identity, peer_id_of
from prime_dht.net.mdns import decode_announcement, encode_announcement
from prime_dht.storage.base import OwnSlot
from prime_dht.storage.dump_lines import End, Header, Line, Meta, decode_line, encode_line
from prime_dht.storage.paging import decode_cursor, encode_cursor
from prime_dht.testing.hostile import damaged
from prime_dht.testing.serving import Serving
from prime_dht.testing.storage_samples import WRITERS, known_peer, make_entry, provider, record
from prime_dht.wire.calls import MAX_REASON_BYTES, Refusal, decode_answer, decode_call, encode_answer, encode_call
from prime_dht.wire.frames import FrameDecoder, decode_varint, encode_frame, encode_varint
from prime_dht.wire.kad import (
    AddProvider,
    BatchReply,
    Connection,
    EntryStatus,
    FindNode,
    GetProviders,
    GetValue,
    PeerRecord,
    Ping,
    PutValue,
    Record,
    Reply,
    Request,
    SlotQuery,
    StatusCode,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

PEER = peer_from_text("12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B")
ADDRESSES = tuple(
    Multiaddr(text).to_bytes()
    for text in (
        "/ip4/192.0.2.1/tcp/4001",
        "/ip6/2001:db8::1/udp/4001/quic-v1",
        "/dns4/example.org/tcp/443/ws",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(PEER)}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(PEER)}/p2p-circuit",
    )
)
KEY = Key(b"/prime/model")
ENTRIES = (make_entry(b"weights", subkey=b"s"), make_entry(None, writer=1), make_entry(bytes(300)))
CAPABILITY = grant(WRITERS[0], member=PEER, expires_at_us=10_000, network_id="conformance")
RECORD = Record(KEY, encode_entry_set(ENTRIES), "2027-01-15T08:00:00.000000000Z", PEER, 60)
PEERS = (PeerRecord(PEER, ADDRESSES[:3], Connection.CONNECTED), PeerRecord(PeerId(b"\x12\x20" + bytes(32))))

REQUESTS: tuple[Request, ...] = (
    FindNode(PEER),
    GetValue(KEY, SlotQuery((b"s",), (PEER,), newest=True, cursor=encode_cursor(PEER, b"s"), max_bytes=1000)),
    GetValue(Key(b""), None, (KEY, Key(b"/prime/other"))),
    PutValue((RECORD,), want_closer=True),
    PutValue((RECORD, RECORD._replace(key=Key(b"/prime/other"))), no_echo=True),
    AddProvider(b"\x12\x20" + bytes(32), PEERS),
    GetProviders(b"\x12\x20" + bytes(32)),
    Ping(),
)
REPLY = Reply(
    record=RECORD,
    closer=PEERS,
    providers=PEERS,
    held=True,
    next_cursor=encode_cursor(PEER, b"s"),
    statuses=(
        EntryStatus(ENTRIES[0].op_id, StatusCode.REFUSED, "over limit"),
        EntryStatus(ENTRIES[1].op_id, StatusCode.STORED),
    ),
    replicates=True,
    batch=(BatchReply(RECORD, held=True), BatchReply()),
)
LINES: tuple[Line, ...] = (
    Header(network="lab", entries=1, records=1, providers=1, peers=1),
    ENTRIES[0],
    record(b"name"),
    replace(record(b"name"), publisher=PEER),
    provider(b"name"),
    known_peer(b"name"),
    OwnSlot(ENTRIES[0].slot, TimestampUs(1), TimestampUs(2)),
    Meta("mode", b"server"),
    End(7, bytes(32)),
)

fuzz = settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


def once_valid(*valid: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(damaged, st.sampled_from(valid), st.randoms(use_true_random=False))


# The wire


@fuzz
@given(once_valid(*map(encode_request, REQUESTS)))
def test_a_request(body: bytes) -> None:
    with suppress(RemoteProtocolError):
        request = decode_request(encode_request(decode_request(body)))
        assert decode_request(encode_request(request)) == request


@fuzz
@given(st.sampled_from(REQUESTS), once_valid(*(encode_reply(request, REPLY) for request in REQUESTS)))
def test_a_reply(request: Request, body: bytes) -> None:
    with suppress(RemoteProtocolError):
        reply = decode_reply(request, encode_reply(request, decode_reply(request, body)))
        assert decode_reply(request, encode_reply(request, reply)) == reply


@fuzz
@given(once_valid(encode_call(300, encode_request(REQUESTS[0]))))
def test_a_call(body: bytes) -> None:
    with suppress(RemoteProtocolError):
        assert encode_call(*decode_call(body)) == body


@fuzz
@given(once_valid(encode_answer(300, b"message"), encode_answer(5, Refusal("the disk is full"))))
def test_an_answer(body: bytes) -> None:
    with suppress(RemoteProtocolError):
        number, answer = decode_answer(body)
        if isinstance(answer, Refusal):
            assert len(answer.reason) <= MAX_REASON_BYTES
        else:
            assert encode_answer(number, answer) == body


@fuzz
@given(once_valid(b"".join(encode_frame(encode_request(request)) for request in REQUESTS)), st.integers(1, 200))
def test_frames_in_pieces(wire: bytes, piece_bytes: int) -> None:
    def read(size: int) -> list[bytes] | None:
        """The frames, or ``None`` if the decoder raised."""
        decoder = FrameDecoder(2000)
        try:
            frames = [
                frame for start in range(0, len(wire), size) for frame in decoder.feed(wire[start : start + size])
            ]
        except RemoteProtocolError:
            return None
        assert decoder.announced_bytes() <= 2000
        return frames

    assert read(piece_bytes) == read(max(1, len(wire)))


@fuzz
@given(once_valid(*(encode_varint(number) for number in (0, 127, 128, 300, 2**32, 2**63 - 1))))
def test_a_varint(wire: bytes) -> None:
    with suppress(RemoteProtocolError):
        read = decode_varint(wire)
        assert read is None or encode_varint(read[0]) == wire[: read[1]]


# Requests that decode, at the handler


class Anything:
    """Takes every record, and prefers the last."""

    def validate(self, key: bytes, value: bytes) -> None:
        pass

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        return len(values) - 1


@fuzz
@given(st.lists(once_valid(*map(encode_request, REQUESTS)), max_size=5))
def test_a_running_server_answers_or_names_a_reason_for_which_there_is_none(bodies: list[bytes]) -> None:
    async def serve() -> None:
        serving = Serving(validators={"x": Anything()})
        serving.meet(3)
        for body in bodies:
            with suppress(RemoteProtocolError, ValidationError):
                request = decode_request(body)
                decode_reply(request, encode_reply(request, await serving.handle(request)))

    trio.run(serve)


# Entries


@fuzz
@given(once_valid(*(entry.envelope for entry in ENTRIES)))
def test_an_envelope_and_the_header_in_it(envelope: bytes) -> None:
    with suppress(ValidationError):
        header = decode_header(open_envelope(envelope, ENTRY).payload)
        assert decode_header(encode_header(header)) == header
        decode_entry(envelope, None)


@fuzz
@given(once_valid(encode_entry_set(ENTRIES)))
def test_an_entry_set_of_which_nothing_is_admitted_but_what_was_signed(data: bytes) -> None:
    rules = AdmissionRules(network_id="conformance")
    with suppress(ValidationError):
        items = decode_entry_set(data, max_entries=10)
        assert len(items) <= 10
        for item in items:
            verdict = admit(item, now_us=200, rules=rules)
            if isinstance(verdict, Admitted):
                assert verdict.entry in ENTRIES
        entries = [item for item in items if isinstance(item, Entry)]
        assert decode_entry_set(encode_entry_set(entries), max_entries=10) == entries


@fuzz
@given(once_valid(CAPABILITY))
def test_a_capability_that_covers_nothing_once_it_was_changed(data: bytes) -> None:
    with suppress(ValidationError):
        decode_capability(data)
        check_capability(
            data,
            root=root_of(WRITERS[0].get_public_key()),
            network_id="conformance",
            member=PEER,
            expires_at_us=9_000,
        )
        assert data == CAPABILITY


@fuzz
@given(once_valid(own_key(PEER, b"rest"), group_key(WRITERS[0].get_public_key(), b"rest"), KEY))
def test_a_key(key: bytes) -> None:
    for read in (
        namespace_of,
        lambda raw: key_rule(Key(raw)),
        lambda raw: ValidatorRegistry().validate(Key(raw), b"v"),
    ):
        with suppress(ValidationError):
            read(key)


# Files


@fuzz
@given(once_valid(*map(encode_line, LINES)))
def test_a_line_of_a_dump(line: bytes) -> None:
    with suppress(ValidationError):
        decoded = decode_line(line)
        assert decode_line(encode_line(decoded)) == decoded


@fuzz
@given(once_valid(encode_cursor(PEER, b"subkey")))
def test_a_cursor(cursor: bytes) -> None:
    with suppress(ValidationError):
        place = decode_cursor(cursor)
        assert place is None or encode_cursor(*place) == cursor


def test_an_identity_file(tmp_path: Path) -> None:
    key_pair, rng = new_identity(), Random(1)
    path = tmp_path / "identity"
    for _ in range(500):
        content = damaged(key_pair.private_key.serialize(), rng)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(content)
        with suppress(ConfigError):
            assert is_peer_id(peer_id_of(load_or_create_identity(path)))
        assert path.read_bytes() == content, "a file that is there is never written"


# Peers and where they are


@fuzz
@given(once_valid(*ADDRESSES))
def test_an_address(raw: bytes) -> None:
    assert isinstance(address_text(raw), str)
    assert is_address_of(PEER, raw) in (True, False)
    address = canonical_address(PEER, raw)
    assert address is None or canonical_address(PEER, address) == address


@fuzz
@given(once_valid(*(f"{address_text(address)}/p2p/{peer_text(PEER)}".encode() for address in ADDRESSES[:3])))
def test_the_text_of_an_address(raw: bytes) -> None:
    text = raw.decode(errors="surrogateescape")
    with suppress(ValidationError):
        peer, address = split_peer_address(text)
        assert is_peer_id(peer)
        assert canonical_address(peer, address) == address


@fuzz
@given(once_valid(peer_text(PEER).encode()))
def test_the_text_of_a_peer_id(raw: bytes) -> None:
    with suppress(ValidationError):
        text = raw.decode(errors="surrogateescape")
        assert is_peer_id(peer_from_text(text))


@fuzz
@given(once_valid(encode_announcement(PEER, ADDRESSES[:3], "lab")))
def test_an_announcement_on_the_local_network(text: bytes) -> None:
    heard = decode_announcement(text, "lab")
    if heard is not None:
        peer, addresses = heard
        assert is_peer_id(peer)
        assert addresses
        assert decode_announcement(encode_announcement(peer, addresses, "lab"), "lab") == heard
