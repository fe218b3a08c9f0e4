"""An IPFS node fetches blocks from this one by Bitswap 1.2.0; py-libp2p's own client stands for one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import trio
from libp2p.abc import INetStream
from libp2p.bitswap.client import BitswapClient
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from trio.testing import MockClock, wait_all_tasks_blocked

from prime_dht.blobs.cid import Cid
from prime_dht.errors import QueryError
from prime_dht.ids import PeerId
from prime_dht.net.bitswap import IDLE_TIMEOUT_S, MAX_PEERS, MAX_WANTS, PROTOCOL, STREAMS_OF_PEER, BitswapServer
from prime_dht.net.block_server import BlockSource
from prime_dht.net.host import HostSettings, open_host
from prime_dht.net.offenders import Offenders
from prime_dht.net.streams import FrameBudget, FrameStream
from prime_dht.pb.bitswap_pb2 import Message
from prime_dht.storage.blocks import BlockStore, Claim
from prime_dht.testing.stock_host import stock_host
from prime_dht.testing.streams import MemoryStream, stream_pair
from prime_dht.wire.frames import encode_frame, encode_varint

HERE, THERE = PeerId(b"\x00\x01a"), PeerId(b"\x00\x01b")
BLOCKS = [bytes([byte]) * (1 << 20) for byte in range(3)]
CIDS = [Cid.of_raw(data) for data in BLOCKS]
NODE = Cid.of_dag_pb(b"a node")
ABSENT = Cid.of_raw(b"absent")
FOREIGN = b"\x12\x20" + NODE.digest  # version 0
Entry = Message.Wantlist.Entry


def want(cid: Cid | bytes, *, have: bool = False, cancel: bool = False, dont_have: bool = True) -> Entry:
    kind = Message.Wantlist.Have if have else Message.Wantlist.Block
    return Entry(block=bytes(cid), wantType=kind, cancel=cancel, sendDontHave=dont_have)


class IpfsNode:
    """The other end: it sends wantlists, and hears what the server sends on streams of its own."""

    def __init__(self, nursery: trio.Nursery, store: BlockSource) -> None:
        self.offenders = Offenders()
        self.server = BitswapServer(store, self._open_stream, self.offenders)
        self._nursery = nursery
        self.heard: list[MemoryStream] = []
        self.is_reachable = True

    async def _open_stream(self, peer: PeerId) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        if not self.is_reachable:
            raise QueryError("it went away")
        here, there = stream_pair(HERE, peer, protocol=PROTOCOL)
        self.heard.append(there)
        return here

    def connect(self, peer: PeerId = THERE) -> MemoryStream:
        here, there = stream_pair(peer, HERE, protocol=PROTOCOL)
        self._nursery.start_soon(self.server.serve, there)
        return here

    async def send(self, *entries: Entry, full: bool = False, stream: MemoryStream | None = None) -> None:
        """Send one wantlist; if no stream is given, on one of its own, which ends with it."""
        wantlist = Message.Wantlist(entries=entries, full=full)
        sending = stream or self.connect()
        await sending.write(encode_frame(Message(wantlist=wantlist).SerializeToString()))
        if stream is None:
            await sending.close()

    async def hear(self, number: int = 0) -> tuple[list[bytes], dict[bytes, int]]:
        """All blocks and presences that come on one stream until it ends."""
        while len(self.heard) <= number:
            await wait_all_tasks_blocked()
        frames = FrameStream(self.heard[number], budget=FrameBudget(1 << 23))
        blocks: list[bytes] = []
        presences: dict[bytes, int] = {}
        while (body := await frames.read_frame(idle_timeout_s=60)) is not None:
            frames.done_with(body)
            message = Message.FromString(body)
            blocks += (bytes(block.prefix) + b"/" + bytes(block.data) for block in message.payload)
            presences |= {bytes(presence.cid): presence.type for presence in message.blockPresences}
        return blocks, presences


@pytest.fixture
async def ipfs(nursery: trio.Nursery) -> IpfsNode:
    store = BlockStore.in_memory(max_bytes=1 << 23)
    await store.claim(Claim(root=NODE), size_bytes=0)
    await store.add(NODE, [(NODE, b"a node"), *zip(CIDS, BLOCKS, strict=True)])
    return IpfsNode(nursery, store)


async def test_blocks_come_with_the_prefix_of_their_cid(ipfs: IpfsNode) -> None:
    await ipfs.send(want(NODE), want(CIDS[0]))
    blocks, presences = await ipfs.hear()
    assert blocks == [b"\x01\x70\x12\x20/a node", b"\x01\x55\x12\x20/" + BLOCKS[0]]
    assert presences == {}


async def test_whether_a_block_is_here_is_answered_without_the_block(ipfs: IpfsNode) -> None:
    await ipfs.send(want(CIDS[0], have=True), want(ABSENT, have=True), want(NODE, have=True, dont_have=False))
    assert await ipfs.hear() == (
        [],
        {bytes(CIDS[0]): Message.Have, bytes(ABSENT): Message.DontHave, bytes(NODE): Message.Have},
    )


async def test_what_is_not_here_is_said_if_that_is_wanted(ipfs: IpfsNode) -> None:
    await ipfs.send(want(ABSENT), want(FOREIGN), want(b"no CID", have=True), want(bytes(36), dont_have=False))
    assert await ipfs.hear() == (
        [],
        {bytes(ABSENT): Message.DontHave, FOREIGN: Message.DontHave, b"no CID": Message.DontHave},
    )


async def test_what_is_cancelled_is_not_sent(ipfs: IpfsNode) -> None:
    await ipfs.send(want(CIDS[0]), want(CIDS[1]), want(CIDS[2]))
    await wait_all_tasks_blocked()  # the first block fills the window
    await ipfs.send(want(CIDS[1], cancel=True))
    await wait_all_tasks_blocked()
    blocks, _ = await ipfs.hear()
    assert [block[5:] for block in blocks] == [BLOCKS[0], BLOCKS[2]]


async def test_what_a_full_wantlist_does_not_name_is_not_sent(ipfs: IpfsNode) -> None:
    await ipfs.send(want(CIDS[0]), want(CIDS[1]), want(NODE))
    await wait_all_tasks_blocked()
    await ipfs.send(want(CIDS[2]), full=True)
    await wait_all_tasks_blocked()
    blocks, _ = await ipfs.hear()
    assert [block[5:] for block in blocks] == [BLOCKS[0], BLOCKS[2]]


async def test_a_peer_that_wants_more_later_on_the_same_stream_is_answered_again(ipfs: IpfsNode) -> None:
    stream = ipfs.connect()
    await ipfs.send(want(NODE), stream=stream)
    assert (await ipfs.hear(0))[0]
    await ipfs.send(want(NODE), stream=stream)
    assert (await ipfs.hear(1))[0]


async def test_wants_beyond_the_bound_are_not_kept(ipfs: IpfsNode) -> None:
    await ipfs.send(want(CIDS[0]), *(want(b"%d" % number) for number in range(MAX_WANTS + 10)))
    _, presences = await ipfs.hear()
    assert len(presences) == MAX_WANTS - 1


async def test_streams_and_peers_beyond_the_bound_are_reset(ipfs: IpfsNode) -> None:
    kept = [ipfs.connect() for _ in range(STREAMS_OF_PEER)]
    kept += [ipfs.connect(PeerId(b"\x00\x01" + bytes([number]))) for number in range(MAX_PEERS - 1)]
    await wait_all_tasks_blocked()
    refused = [ipfs.connect(), ipfs.connect(PeerId(b"\x00\x01\xff"))]
    await wait_all_tasks_blocked()
    assert [stream.is_reset for stream in refused] == [True, True]
    assert not any(stream.is_reset for stream in kept)


@pytest.mark.parametrize("sent", [b"\x02\xff\xff", encode_varint(1 << 20)])
async def test_what_is_no_wantlist_is_charged(ipfs: IpfsNode, sent: bytes) -> None:
    stream = ipfs.connect()
    await stream.write(sent)
    await wait_all_tasks_blocked()
    assert stream.is_reset
    assert ipfs.offenders.offences == {THERE: 1}


async def test_a_peer_that_cannot_be_answered_is_let_go(ipfs: IpfsNode) -> None:
    ipfs.is_reachable = False
    await ipfs.send(want(NODE))
    await wait_all_tasks_blocked()
    ipfs.is_reachable = True
    await ipfs.send(want(NODE))
    assert (await ipfs.hear())[0]
    assert not ipfs.offenders.offences


async def test_a_stream_on_which_nothing_is_wanted_is_reset(ipfs: IpfsNode, mock_clock: MockClock) -> None:
    stream = ipfs.connect()
    await wait_all_tasks_blocked()
    mock_clock.jump(IDLE_TIMEOUT_S + 1)
    await wait_all_tasks_blocked()
    assert stream.is_reset


class SlowSource:
    """A store that takes its time for each block."""

    def __init__(self, store: BlockStore, block_s: float) -> None:
        self._store = store
        self._block_s = block_s

    async def present(self, cids: Iterable[Cid]) -> set[Cid]:
        return await self._store.present(cids)

    async def read(self, cids: Sequence[Cid]) -> list[bytes | None]:
        await trio.sleep(self._block_s)
        return await self._store.read(cids)


async def test_a_peer_that_asks_once_and_waits_gets_all_of_it_however_long_that_takes(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with BlockStore.in_memory(max_bytes=1 << 23) as store:
        await store.claim(Claim(root=NODE), size_bytes=0)
        await store.add(NODE, [(NODE, b"a node"), *zip(CIDS, BLOCKS, strict=True)])
        ipfs = IpfsNode(nursery, SlowSource(store, 0.7 * IDLE_TIMEOUT_S))
        stream = ipfs.connect()
        await ipfs.send(want(NODE), *map(want, CIDS), stream=stream)
        blocks, _ = await ipfs.hear()
        assert len(blocks) == 4
        await trio.sleep(0.9 * IDLE_TIMEOUT_S)
        assert not stream.is_reset
        await trio.sleep(0.2 * IDLE_TIMEOUT_S)
        assert stream.is_reset, "from the answer's end on it idles"


async def test_stopping_resets_what_is_served(ipfs: IpfsNode) -> None:
    stream = ipfs.connect()
    await wait_all_tasks_blocked()
    ipfs.server.stop()
    await wait_all_tasks_blocked()
    assert stream.is_reset


async def test_py_libp2p_fetches_blocks_of_our_size_from_us() -> None:
    settings = HostSettings(key_pair=create_new_key_pair(), listen=("/ip4/127.0.0.1/tcp/0",))
    async with BlockStore.in_memory(max_bytes=1 << 23) as store, open_host(settings) as ours, stock_host() as theirs:
        await store.claim(Claim(root=NODE), size_bytes=0)
        await store.add(NODE, [(NODE, b"a node"), *zip(CIDS, BLOCKS, strict=True)])

        async def open_stream(peer: PeerId) -> INetStream:
            return await ours.new_stream(ID(peer), [TProtocol(PROTOCOL)])

        async with trio.open_nursery() as nursery:
            server = BitswapServer(store, open_stream, Offenders())
            ours.set_stream_handler(TProtocol(PROTOCOL), server.serve)
            client = BitswapClient(theirs)
            client.set_nursery(nursery)
            await client.start()
            await theirs.connect(PeerInfo(ours.get_id(), ours.get_addrs()))
            wanted = [bytes(cid) for cid in (NODE, *CIDS)]
            came = await client.new_session().get_blocks_batch([*wanted], peer_id=ours.get_id())
            assert came == {bytes(NODE): b"a node", **dict(zip(map(bytes, CIDS), BLOCKS, strict=True))}
            await client.stop()
            nursery.cancel_scope.cancel()
