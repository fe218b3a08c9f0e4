"""The Kademlia messages as values, and their codec.

Six requests and one reply, on the wire of the libp2p kad-dht specification; prime_dht's extensions are field numbers of
100 and more (``protos/kad.proto``), which other implementations skip. What is read from a peer is bounded and checked
here: ids that are no peer ids are dropped, long address lists are cut, and whatever does not parse is a
:class:`~prime_dht.errors.RemoteProtocolError`.

Rules that other implementations force (``PUT_VALUE`` and ``clusterLevelRaw`` below are the wire's names):

- A record's key and the message's key are both set, and equal: js-libp2p validates the first, go-libp2p the second.
- A reply's ``key`` may be absent; ``clusterLevelRaw`` is noise.
- rust-libp2p's default frame limit is 16 KiB, so a reply's peer lists are cut to :data:`PEER_LIST_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, assert_never

from google.protobuf.message import DecodeError

from prime_dht.errors import RemoteProtocolError
from prime_dht.ids import Key, OpId, PeerId, is_peer_id
from prime_dht.pb import kad_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

MAX_PEERS_READ = 64
"""Peers of one list of a reply that are looked at; the rest is ignored."""

MAX_ADDRESSES_PER_PEER = 16
"""Addresses of one peer that are read or sent."""

MAX_ADDRESS_BYTES = 512

PEER_LIST_BYTES = 12_000
"""Bytes that the peer lists of one reply may take, so that it stays below rust-libp2p's 16 KiB."""

MAX_MULTIHASH_BYTES = 80
MAX_BATCH = 256
"""Keys in one batched request."""


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


_STATUS_CODES = {int(code): code for code in StatusCode}
_CONNECTIONS = {int(connection): connection for connection in Connection}


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """A peer in a reply: its id and binary multiaddrs."""

    peer: PeerId
    addresses: tuple[bytes, ...] = ()
    connection: Connection = Connection.NOT_CONNECTED


@dataclass(frozen=True, slots=True)
class Record:
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


@dataclass(frozen=True, slots=True)
class EntryStatus:
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
    """Store records: one, or, as prime_dht's extension, several."""

    records: tuple[Record, ...]
    want_closer: bool = False
    no_echo: bool = False


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
    """Answered, never sent: libp2p has its own ping protocol."""


Request = FindNode | GetValue | PutValue | AddProvider | GetProviders | Ping


@dataclass(frozen=True, slots=True)
class BatchReply:
    """The answer for one key of a batch."""

    record: Record | None = None
    statuses: tuple[EntryStatus, ...] = ()
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer to any request; what a request does not ask for stays empty."""

    record: Record | None = None
    closer: tuple[PeerRecord, ...] = ()
    providers: tuple[PeerRecord, ...] = ()
    held: bool = False
    next_cursor: bytes = b""
    statuses: tuple[EntryStatus, ...] = ()
    replicates: bool = False
    batch: tuple[BatchReply, ...] = ()


def encode_request(request: Request) -> bytes:
    """The message's bytes, without a frame."""
    message = pb.Message()
    match request:
        case FindNode(target):
            message.type = pb.Message.FIND_NODE
            message.key = target
        case GetValue(key, query, batch):
            message.type = pb.Message.GET_VALUE
            message.key = key
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
        case PutValue(records, want_closer, no_echo):
            message.type = pb.Message.PUT_VALUE
            message.want_closer = want_closer
            message.no_echo = no_echo
            if len(records) == 1:
                message.key = records[0].key
                _write_record(message.record, records[0])
            else:
                for record in records:
                    item = message.batch.add()
                    item.key = record.key
                    _write_record(item.record, record)
        case AddProvider(multihash, providers):
            message.type = pb.Message.ADD_PROVIDER
            message.key = multihash
            _write_peers(message.providerPeers, providers, PEER_LIST_BYTES)
        case GetProviders(multihash):
            message.type = pb.Message.GET_PROVIDERS
            message.key = multihash
        case Ping():
            message.type = pb.Message.PING
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
            if not message.key:
                raise RemoteProtocolError("FIND_NODE without a key")
            return FindNode(message.key)
        case pb.Message.GET_VALUE:
            batch = tuple(Key(item.key) for item in message.batch)
            if bool(message.key) == bool(batch) or len(batch) > MAX_BATCH or not all(batch):
                raise RemoteProtocolError("GET_VALUE needs one key, or a batch of up to 256")
            return GetValue(Key(message.key), _read_query(message), batch)
        case pb.Message.PUT_VALUE:
            return PutValue(_read_put_records(message), message.want_closer, message.no_echo)
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
    message = pb.Message()
    match request:
        case FindNode(target):
            message.type = pb.Message.FIND_NODE
            message.key = target
        case GetValue(key):
            message.type = pb.Message.GET_VALUE
            message.key = key
        case PutValue(records):
            message.type = pb.Message.PUT_VALUE
            if len(records) == 1:
                message.key = records[0].key
        case AddProvider(multihash):
            message.type = pb.Message.ADD_PROVIDER
            message.key = multihash
        case GetProviders(multihash):
            message.type = pb.Message.GET_PROVIDERS
            message.key = multihash
        case Ping():
            message.type = pb.Message.PING
        case _:
            assert_never(request)
    if reply.record is not None:
        _write_record(message.record, reply.record)
    room = PEER_LIST_BYTES - _write_peers(message.providerPeers, reply.providers, PEER_LIST_BYTES // 2)
    _write_peers(message.closerPeers, reply.closer, room)
    message.held = reply.held
    message.next_cursor = reply.next_cursor
    message.replicates = reply.replicates
    _write_statuses(message.statuses, reply.statuses)
    for item_reply in reply.batch:
        item = message.batch.add()
        if item_reply.record is not None:
            _write_record(item.record, item_reply.record)
        item.held = item_reply.held
        _write_statuses(item.statuses, item_reply.statuses)
    return message.SerializeToString()


def decode_reply(body: bytes) -> Reply:
    """Read a reply.

    Raises:
        RemoteProtocolError: it does not parse.
    """
    message = _parse(body)
    return Reply(
        record=_read_record(message.record) if message.HasField("record") else None,
        closer=_read_peers(message.closerPeers) if message.closerPeers else (),
        providers=_read_peers(message.providerPeers) if message.providerPeers else (),
        held=message.held,
        next_cursor=message.next_cursor,
        statuses=_read_statuses(message.statuses),
        replicates=message.replicates,
        batch=tuple(
            BatchReply(
                _read_record(item.record) if item.HasField("record") else None,
                _read_statuses(item.statuses),
                item.held,
            )
            for item in message.batch[:MAX_BATCH]
        ),
    )


def _parse(body: bytes) -> pb.Message:
    try:
        return pb.Message.FromString(body)
    except DecodeError as error:
        raise RemoteProtocolError("not a Kademlia message") from error


def _multihash(message: pb.Message) -> bytes:
    if not 1 <= len(message.key) <= MAX_MULTIHASH_BYTES:
        raise RemoteProtocolError("a provider key is a multihash of 1 to 80 bytes")
    return message.key


def _read_put_records(message: pb.Message) -> tuple[Record, ...]:
    if message.batch:
        records = tuple(_read_record(item.record) for item in message.batch)
        if len(records) > MAX_BATCH or message.HasField("record") or not all(record.key for record in records):
            raise RemoteProtocolError("a batched PUT_VALUE has up to 256 records, each with its key, and no other")
        return records
    if not message.HasField("record"):
        raise RemoteProtocolError("PUT_VALUE without a record")
    record = _read_record(message.record)
    if not record.key or record.key != message.key:
        raise RemoteProtocolError("PUT_VALUE: the record's key and the message's differ")
    return (record,)


def _read_query(message: pb.Message) -> SlotQuery | None:
    if not message.HasField("query"):
        return None
    query = message.query
    if len(query.subkeys) > MAX_BATCH or len(query.publishers) > MAX_BATCH or len(query.cursor) > 1024:
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


def _read_statuses(statuses: Iterable[pb.EntryStatus]) -> tuple[EntryStatus, ...]:
    return tuple(
        EntryStatus(
            OpId(status.op_id),
            _STATUS_CODES.get(status.code, StatusCode.UNSPECIFIED),
            status.reason[:200],
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
        addresses = record.addresses[:MAX_ADDRESSES_PER_PEER]
        size = 16 + len(record.peer) + sum(len(address) + 4 for address in addresses)
        if used + size > room:
            break
        used += size
        wire.add(id=record.peer, addrs=addresses, connection=pb.Message.ConnectionType.ValueType(record.connection))
    return used
