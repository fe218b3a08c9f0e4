"""The Kademlia messages as values, and their codec.

Six requests and one reply, on the wire of the libp2p kad-dht specification; prime_dht's extensions are field numbers of
100 and more (``protos/kad.proto``), which other implementations skip. What is read from a peer is bounded and checked
here: ids that are no peer ids are dropped, long address lists are cut, and whatever does not parse is a
:class:`~prime_dht.errors.RemoteProtocolError`.

Rules that other implementations force (``PUT_VALUE`` and ``clusterLevelRaw`` below are the wire's names):

- A record's key and the message's key are both set, and equal: js-libp2p validates the first, go-libp2p the second.
- A reply's ``key`` may be absent; one that is there is the request's. ``clusterLevelRaw`` is noise.
- rust-libp2p's default frame limit is 16 KiB, so a reply's peer lists are cut to :data:`PEER_LIST_BYTES`. Each peer's
  addresses are cut first, so that no peer can crowd out the others with its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, assert_never

from google.protobuf.message import DecodeError

from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import Key, OpId, PeerId, is_peer_id
from prime_dht.pb import kad_pb2 as pb
from prime_dht.wire.fields import has_more_fields

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

MAX_PEERS_READ = 64
"""Peers of one list of a reply that are looked at; the rest is ignored."""

MAX_ADDRESSES_PER_PEER = 16
"""Addresses of one peer that are read or sent."""

MAX_ADDRESS_BYTES = 256
"""Of a binary multiaddr that is read, or kept."""

ADDRESS_BYTES_SENT = 500
"""Bytes that one peer's addresses may take in a list; 20 peers then always fit into :data:`PEER_LIST_BYTES`."""

PEER_LIST_BYTES = 12_000
"""Bytes that the peer lists of one reply may take, so that it stays below rust-libp2p's 16 KiB."""

MAX_KEY_BYTES = 64 << 10
"""More than any entry's key can have; a node's own limit is far lower."""

MAX_MULTIHASH_BYTES = 80
MAX_BATCH = 256
"""Keys in one batched request."""

MAX_STATUSES = 4096
"""Entries of one request, and so statuses of its reply."""

MAX_FIELDS = 8192
"""Fields of one message: the most statuses, and whatever lists of peers others send beside them."""

COUNTED_FROM_BYTES = 64 << 10
"""Smaller messages are parsed faster than their fields are counted."""

MAX_CURSOR_BYTES = 1024
MAX_REASON_CHARACTERS = 200


class Connection(IntEnum):
    """What the sender of a peer's addresses knows of its reachability."""

    NOT_CONNECTED = 0
    CONNECTED = 1
    CAN_CONNECT = 2
    CANNOT_CONNECT = 3


class StatusCode(IntEnum):
    """What became of an entry at a replica."""

    UNSPECIFIED = 0
    STORED = 1
    SUPERSEDED = 2
    REFUSED = 3
    DEFERRED = 4


_PEER_FRAMING_BYTES = 7
"""Of a peer in a list, beside its id and addresses: its own tag and length, the id's, and the connection."""

_STATUS_CODES = {int(code): code for code in StatusCode}
_CONNECTIONS = {int(connection): connection for connection in Connection}


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer in a reply: its id and binary multiaddrs."""

    peer: PeerId
    addresses: tuple[bytes, ...] = ()
    connection: Connection = Connection.NOT_CONNECTED


class Record(NamedTuple):
    """A libp2p record. Under a ``/prime/`` key the value is an encoded entry set."""

    key: Key
    value: bytes
    time_received: str = ""
    publisher: bytes = b""
    ttl_s: int = 0


@dataclass(frozen=True, slots=True)
class SlotQuery:
    """Which of a key's slots are asked for; see :class:`prime_dht.storage.base.EntryQuery`."""

    subkeys: tuple[bytes, ...] = ()
    publishers: tuple[PeerId, ...] = ()
    newest: bool = False
    cursor: bytes = b""
    max_bytes: int = 0


class EntryStatus(NamedTuple):
    op_id: OpId
    code: StatusCode
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FindNode:
    """Who is closest to ``target``: a peer id's multihash bytes, or any key."""

    target: bytes


@dataclass(frozen=True, slots=True)
class GetValue:
    """The record under ``key``; or, in one request, those under each of ``batch``, when ``key`` is empty."""

    key: Key
    query: SlotQuery | None = None
    batch: tuple[Key, ...] = ()


@dataclass(frozen=True, slots=True)
class PutValue:
    """Store records: one, or, as prime_dht's extension, several.

    ``replicas`` is the :func:`~prime_dht.kad.replicas.digest` of those the sender knows of, or empty: who knows of the
    same need not name closer peers.
    """

    records: tuple[Record, ...]
    want_closer: bool = False
    no_echo: bool = False
    replicas: bytes = b""


@dataclass(frozen=True, slots=True)
class AddProvider:
    """The sender has the content of a multihash. On the classical protocol there is no reply."""

    multihash: bytes
    providers: tuple[PeerRecord, ...]


@dataclass(frozen=True, slots=True)
class GetProviders:
    multihash: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for an answer and nothing else. Whether a *host* is there is the question of libp2p's own ping protocol."""


Request = FindNode | GetValue | PutValue | AddProvider | GetProviders | Ping


@dataclass(frozen=True, slots=True)
class BatchReply:
    """The answer for one key of a batch; the rest of one that goes on at ``next_cursor`` is asked for singly."""

    record: Record | None = None
    held: bool = False
    next_cursor: bytes = b""
    not_held: bool = False


class Reply(NamedTuple):
    """The answer to any request; what a request does not ask for stays empty."""

    record: Record | None = None
    closer: tuple[PeerRecord, ...] = ()
    providers: tuple[PeerRecord, ...] = ()
    held: bool = False
    next_cursor: bytes = b""
    statuses: tuple[EntryStatus, ...] = ()
    replicates: bool = False
    batch: tuple[BatchReply, ...] = ()
    not_held: bool = False


def encode_request(request: Request) -> bytes:
    """The message's bytes, without a frame."""
    message = _headed(request)
    match request:
        case GetValue(_, query, batch):
            for batch_key in batch:
                message.batch.add().key = batch_key
            if query is not None:
                wire = message.query
                wire.SetInParent()
                wire.subkeys.extend(query.subkeys)
                wire.publishers.extend(query.publishers)
                wire.newest = query.newest
                wire.cursor = query.cursor
                wire.max_bytes = query.max_bytes
        case PutValue(records, want_closer, no_echo, replicas):
            message.want_closer = want_closer
            message.no_echo = no_echo
            message.replicas = replicas
            if len(records) == 1:
                _write_record(message.record, records[0])
            else:
                for record in records:
                    item = message.batch.add()
                    item.key = record.key
                    _write_record(item.record, record)
        case AddProvider(_, providers):
            _write_peers(message.providerPeers, providers, PEER_LIST_BYTES)
        case FindNode() | GetProviders() | Ping():
            pass
        case _:
            assert_never(request)
    return message.SerializeToString()


def decode_request(body: bytes) -> Request:
    """Read a request.

    Raises:
        RemoteProtocolError: it does not parse, or lacks what its type needs.
    """
    message = _parse(body)
    match message.type:
        case pb.Message.FIND_NODE:
            return FindNode(_key(message.key))
        case pb.Message.GET_VALUE:
            query = _read_query(message)
            if not message.batch:
                return GetValue(_key(message.key), query)
            if message.key or len(message.batch) > MAX_BATCH:
                raise RemoteProtocolError(f"GET_VALUE: one key, or a batch of up to {MAX_BATCH}")
            return GetValue(Key(b""), query, tuple(_key(item.key) for item in message.batch))
        case pb.Message.PUT_VALUE:
            return PutValue(_read_put_records(message), message.want_closer, message.no_echo, message.replicas)
        case pb.Message.ADD_PROVIDER:
            return AddProvider(_multihash(message), _read_peers(message.providerPeers))
        case pb.Message.GET_PROVIDERS:
            return GetProviders(_multihash(message))
        case pb.Message.PING:
            return Ping()
        case other:
            raise RemoteProtocolError(f"unknown message type {other}")


def encode_reply(request: Request, reply: Reply) -> bytes:
    """The bytes of the answer to ``request``; type and key are echoed, as go-libp2p expects."""
    message = _headed(request)
    if reply.record is not None:
        _write_record(message.record, reply.record)
    room = PEER_LIST_BYTES - _write_peers(message.providerPeers, reply.providers, PEER_LIST_BYTES // 2)
    _write_peers(message.closerPeers, reply.closer, room)
    message.held = reply.held
    message.next_cursor = reply.next_cursor
    message.replicates = reply.replicates
    message.not_held = reply.not_held
    _write_statuses(message.statuses, reply.statuses)
    for item_reply in reply.batch:
        item = message.batch.add()
        if item_reply.record is not None:
            _write_record(item.record, item_reply.record)
        item.held = item_reply.held
        item.next_cursor = item_reply.next_cursor
        item.not_held = item_reply.not_held
    return message.SerializeToString()


def decode_reply(request: Request, body: bytes) -> Reply:
    """Read the reply to ``request``.

    Raises:
        RemoteProtocolError: it does not parse, exceeds a bound, or has the type or key of another request.
    """
    message = _parse(body)
    kind, key = _heading(request)
    if message.type != kind or message.key not in (b"", key):
        raise RemoteProtocolError("a reply to another request")
    return Reply(
        record=_read_record(message.record) if message.HasField("record") else None,
        closer=_read_peers(message.closerPeers) if message.closerPeers else (),
        providers=_read_peers(message.providerPeers) if message.providerPeers else (),
        held=message.held,
        next_cursor=_cursor(message.next_cursor),
        statuses=_read_statuses(message.statuses),
        replicates=message.replicates,
        batch=tuple(
            BatchReply(
                _read_record(item.record) if item.HasField("record") else None,
                item.held,
                _cursor(item.next_cursor),
                item.not_held,
            )
            for item in message.batch[:MAX_BATCH]
        ),
        not_held=message.not_held,
    )


def _heading(request: Request) -> tuple[pb.Message.MessageType.ValueType, bytes]:
    """The message's ``type`` and ``key``, which its reply repeats; in a batch the key is empty."""
    match request:
        case FindNode(target):
            return pb.Message.FIND_NODE, target
        case GetValue(key):
            return pb.Message.GET_VALUE, key
        case PutValue(records):
            return pb.Message.PUT_VALUE, records[0].key if len(records) == 1 else b""
        case AddProvider(multihash):
            return pb.Message.ADD_PROVIDER, multihash
        case GetProviders(multihash):
            return pb.Message.GET_PROVIDERS, multihash
        case Ping():
            return pb.Message.PING, b""
        case _:
            assert_never(request)


def _headed(request: Request) -> pb.Message:
    message = pb.Message()
    message.type, message.key = _heading(request)
    return message


def _parse(body: bytes) -> pb.Message:
    if len(body) > COUNTED_FROM_BYTES and has_more_fields(body, MAX_FIELDS):
        raise RemoteProtocolError(f"a Kademlia message has at most {MAX_FIELDS} fields")
    try:
        return pb.Message.FromString(body)
    except DecodeError as error:
        raise RemoteProtocolError("not a Kademlia message") from error


def _key(raw: bytes) -> Key:
    if not 1 <= len(raw) <= MAX_KEY_BYTES:
        raise RemoteProtocolError(f"a key has 1 to {MAX_KEY_BYTES} bytes, not {len(raw)}")
    return Key(raw)


def _cursor(raw: bytes) -> bytes:
    if len(raw) > MAX_CURSOR_BYTES:
        raise RemoteProtocolError("a cursor that is too long")
    return raw


def _multihash(message: pb.Message) -> bytes:
    if not 1 <= len(message.key) <= MAX_MULTIHASH_BYTES:
        raise RemoteProtocolError("a provider key is a multihash of 1 to 80 bytes")
    return message.key


def _read_put_records(message: pb.Message) -> tuple[Record, ...]:
    if not message.batch:
        return (_read_put_record(message.key, message),)
    if message.key or message.HasField("record") or len(message.batch) > MAX_BATCH:
        raise RemoteProtocolError(f"PUT_VALUE: one record, or a batch of up to {MAX_BATCH}")
    return tuple(_read_put_record(item.key, item) for item in message.batch)


def _read_put_record(key: bytes, holder: pb.Message | pb.BatchItem) -> Record:
    if not holder.HasField("record"):
        raise RemoteProtocolError("PUT_VALUE without a record")
    if holder.record.key != _key(key):
        raise RemoteProtocolError("PUT_VALUE: the record's key and the message's differ")
    return _read_record(holder.record)


def _read_query(message: pb.Message) -> SlotQuery | None:
    if not message.HasField("query"):
        return None
    query = message.query
    if len(query.subkeys) > MAX_BATCH or len(query.publishers) > MAX_BATCH or len(query.cursor) > MAX_CURSOR_BYTES:
        raise RemoteProtocolError("GET_VALUE: the query is too long")
    return SlotQuery(
        tuple(query.subkeys),
        tuple(PeerId(publisher) for publisher in query.publishers),
        query.newest,
        query.cursor,
        query.max_bytes,
    )


def _read_record(record: pb.Record) -> Record:
    return Record(Key(record.key), record.value, record.timeReceived, record.publisher, record.ttl)


def _write_record(wire: pb.Record, record: Record) -> None:
    wire.key = record.key
    wire.value = record.value
    wire.timeReceived = record.time_received
    wire.publisher = record.publisher
    wire.ttl = record.ttl_s


def _read_statuses(statuses: RepeatedCompositeFieldContainer[pb.EntryStatus]) -> tuple[EntryStatus, ...]:
    if len(statuses) > MAX_STATUSES:
        raise RemoteProtocolError(f"more than {MAX_STATUSES} statuses")
    return tuple(
        EntryStatus(
            OpId(status.op_id),
            _STATUS_CODES.get(status.code, StatusCode.UNSPECIFIED),
            status.reason[:MAX_REASON_CHARACTERS],
        )
        for status in statuses
    )


def _write_statuses(wire: RepeatedCompositeFieldContainer[pb.EntryStatus], statuses: Iterable[EntryStatus]) -> None:
    for status in statuses:
        wire.add(op_id=status.op_id, code=pb.EntryStatus.Code.ValueType(status.code), reason=status.reason)


def _read_peers(peers: RepeatedCompositeFieldContainer[pb.Message.Peer]) -> tuple[PeerRecord, ...]:
    return tuple(
        PeerRecord(
            PeerId(peer.id),
            tuple(a for a in peer.addrs[:MAX_ADDRESSES_PER_PEER] if 0 < len(a) <= MAX_ADDRESS_BYTES),
            _CONNECTIONS.get(peer.connection, Connection.NOT_CONNECTED),
        )
        for peer in peers[:MAX_PEERS_READ]
        if is_peer_id(peer.id)
    )


def _write_peers(wire: RepeatedCompositeFieldContainer[pb.Message.Peer], peers: Iterable[PeerRecord], room: int) -> int:
    """Write what fits in ``room`` bytes, whole peers; the nearest come first, so those behind are cut. Bytes used."""
    used = 0
    for record in peers:
        addresses = _addresses_sent(record.addresses)
        size = _PEER_FRAMING_BYTES + len(record.peer) + sum(map(_address_size, addresses))
        if used + size > room:
            break
        used += size
        wire.add(id=record.peer, addrs=addresses, connection=pb.Message.ConnectionType.ValueType(record.connection))
    return used


def _addresses_sent(addresses: Iterable[bytes]) -> list[bytes]:
    """The first of a peer's addresses, as many as its share allows."""
    room = ADDRESS_BYTES_SENT
    sent: list[bytes] = []
    for address in islice(addresses, MAX_ADDRESSES_PER_PEER):
        room -= _address_size(address)
        if room < 0:
            break
        sent.append(address)
    return sent


def _address_size(address: bytes) -> int:
    return len(address) + (2 if len(address) < 0x80 else 3)
