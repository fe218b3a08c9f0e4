"""mDNS: nodes of one network find each other on the local network, with no bootstrap peer.

Terms and sources (libp2p specification "Multicast DNS"; RFC 6762, multicast DNS; RFC 6763, service discovery):

- A *service* is an instance of ``_p2p._udp.local``, under a random name that is new each time. It says who it is in a
  TXT record of attributes ``dnsaddr=<multiaddr>/p2p/<peer id>``, the key repeated, as the specification has it.
- The *network mark* is one more attribute, ``prime-net=<network id>``. Every libp2p node can read what we announce;
  we take notice only of a service that carries our network's mark, once, so two swarms on one wire do not mix.
- A *conversation* is one life of zeroconf: one set of interfaces, one announcement, which stands until its
  goodbye. When the machine's interfaces or the node's addresses change (looked at every ``POLL_S``), it ends and
  another begins, which also asks the new network who is there.

zeroconf sends, answers and decodes, on an asyncio loop in a thread of its own: it only carries. What is asked, when,
and what to make of the answers is decided in the trio thread. Between the two stands the :class:`_Ear`.

Invariants:

- What is received is hostile. A TXT record counts only if it is within ``MAX_TEXT_BYTES``, well-formed and names one
  peer that is not this node; addresses pass :func:`prime_dht.net.address_book.canonical_address`. It is not signed:
  anybody on the local network can claim any peer id, so what is found is hearsay until a dial proves it.
- Everything is bounded: records waiting to be looked at (``MAX_WAITING``; the rest is dropped and counted), how fast
  they are (one in ``LOOK_EVERY_S``), and records remembered in order not to report them again (``MAX_REMEMBERED``).
  zeroconf bounds its cache to 10,000 records.
- Where there is no multicast the node goes on without; one line says why.
- A conversation that ends leaves neither thread nor socket; trio keeps the idle worker for its next use.

Deliberate differences: zeroconf's own ``ServiceBrowser`` is not used, because what it schedules for the names a remote
makes up has no bound, nor its ``ServiceInfo.request``, which reads only the first ``dnsaddr`` and none without an A
record. Our queries list no known answers: they are few (RFC 6762 section 5.2, twice as long between each), and so
they also repair a lost TXT record. They do not ask for unicast replies, which of several nodes on one machine only one
would get. IPv4 carries the conversation; the addresses in it are of any kind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import socket
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import ifaddr
import trio
from multiaddr import Multiaddr

# zeroconf has no __all__ entry for its codec, and no other public place for it.
from zeroconf import (  # type: ignore[attr-defined]
    DNSOutgoing,
    DNSQuestion,
    DNSText,
    Error,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf.asyncio import AsyncZeroconf

from prime_dht.background import background_nursery
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, peer_text
from prime_dht.net.address_book import canonical_address, split_peer_address

SERVICE_TYPE = "_p2p._udp.local."

MAX_TEXT_BYTES = 1_300
"""The longest TXT record that is sent or looked at: what fits into one packet (RFC 6763 section 6.2)."""

MAX_WAITING = 256
"""TXT records heard and not yet looked at."""

MAX_REMEMBERED = 1_024
"""TXT records remembered, so as not to report them again; the one reported longest ago is forgotten first."""

REPORT_AGAIN_S = 600.0
"""How long a TXT record that is heard again is not reported. Then it is, since peers are forgotten too."""

LOOK_EVERY_S = 0.01
"""Time between two looks at what was heard, however much it is."""

POLL_S = 30.0
"""How often interfaces and own addresses are compared with those that the conversation began with."""

MAX_ASK_PAUSE_S = 3_600.0
"""The longest time between two queries; the first is 1 s, and it doubles."""

Found = Callable[[PeerId, tuple[bytes, ...]], None]
"""Told of a peer and its addresses, binary multiaddrs without the ``/p2p/`` part, at least one."""

_MDNS_GROUP, _MDNS_PORT = "224.0.0.251", 5353
_QUERY, _TYPE_PTR, _CLASS_IN = 0, 12, 1
_START_TIMEOUT_S = 0.5

logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_mdns(
    *,
    peer: PeerId,
    addresses: Callable[[], tuple[bytes, ...]],
    network_id: str,
    found: Found,
    interfaces: Sequence[str] | None = None,
) -> AsyncIterator[None]:
    """Announce this node on the local network within the block, and tell ``found`` of the others of its network.

    It begins in the background. At the end of the block, also on cancellation, the node says goodbye, which takes
    about a quarter of a second. An exception of the block leaves it as itself, not in a group.

    Args:
        peer: this node.
        addresses: binary multiaddrs at which others may reach it now; while there are none it only listens.
        network_id: its network, 1 to 64 bytes of UTF-8.
        found: called in the trio thread when another node is heard, at once again when it comes back or its addresses
            change, and otherwise when it is heard after a while. Nothing is checked but the form: see the module.
        interfaces: IPv4 addresses of the interfaces to use; all of the machine's by default.
    """
    mdns = _Mdns(peer, addresses, network_id, found, interfaces)
    async with background_nursery() as nursery:
        nursery.start_soon(mdns.run)
        yield


def encode_announcement(peer: PeerId, addresses: Iterable[bytes], network_id: str) -> bytes:
    """A node's TXT record: its network mark, and of its addresses, canonical binary multiaddrs, those that fit."""
    text = _attribute(b"prime-net=" + network_id.encode())
    for address in addresses:
        attribute = _attribute(f"dnsaddr={Multiaddr(address)}/p2p/{peer_text(peer)}".encode())
        if len(text) + len(attribute) <= MAX_TEXT_BYTES:
            text += attribute
    return text


def decode_announcement(text: bytes, network_id: str) -> tuple[PeerId, tuple[bytes, ...]] | None:
    """The peer that a TXT record names and its addresses, at least one; ``None`` if it is not one of our network's.

    Addresses that cannot be dialled are left out. A record that is malformed, too long or names two peers is none.

    >>> from prime_dht.ids import peer_from_text
    >>> peer = peer_from_text("12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B")
    >>> address = Multiaddr("/ip4/192.0.2.1/tcp/4001").to_bytes()
    >>> text = encode_announcement(peer, [address], "prime")
    >>> text[:16]
    b'\\x0fprime-net=prime'
    >>> decode_announcement(text, "prime") == (peer, (address,)), decode_announcement(text, "another")
    (True, None)
    """
    if len(text) > MAX_TEXT_BYTES:
        return None
    marks: list[bytes] = []
    claims: list[tuple[PeerId, bytes]] = []
    for attribute in _attributes(text):
        key, _, value = attribute.partition(b"=")
        if key == b"prime-net":
            marks.append(value)
        elif key == b"dnsaddr":
            with suppress(UnicodeDecodeError, ValidationError):
                claims.append(split_peer_address(value.decode()))
    peers = {peer for peer, _ in claims}
    if marks != [network_id.encode()] or len(peers) != 1:
        return None
    return peers.pop(), tuple(dict.fromkeys(address for _, address in claims))


def _attribute(content: bytes) -> bytes:
    """A DNS character string; none at all if the content is too long for one."""
    return bytes([len(content)]) + content if len(content) < 256 else b""


def _attributes(text: bytes) -> list[bytes]:
    """The character strings of a TXT record; none if the last one is cut off."""
    attributes: list[bytes] = []
    at = 0
    while at < len(text):
        end = at + 1 + text[at]
        attributes.append(text[at + 1 : end])
        at = end
    return attributes if at == len(text) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Circumstances:
    """What a conversation depends on; when it is no longer so, the conversation ends."""

    interfaces: tuple[str, ...]
    """IPv4 addresses of interfaces with multicast."""

    addresses: tuple[bytes, ...]
    """This node's."""

    refusals: tuple[str, ...] = field(compare=False)
    """Why the other interfaces cannot be used."""


class _Mdns:
    """Holds one conversation after the other."""

    def __init__(
        self,
        peer: PeerId,
        addresses: Callable[[], tuple[bytes, ...]],
        network_id: str,
        found: Found,
        interfaces: Sequence[str] | None,
    ) -> None:
        self._peer = peer
        self._addresses = addresses
        self._network_id = network_id
        self._found = found
        self._interfaces = interfaces

    async def run(self) -> None:
        now = self._circumstances()
        while True:
            began = now
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._converse, began)
                while now == began:
                    await trio.sleep(POLL_S)
                    now = self._circumstances()
                nursery.cancel_scope.cancel()

    def _circumstances(self) -> _Circumstances:
        interfaces = _machine_interfaces() if self._interfaces is None else self._interfaces
        refusals = {interface: _refusal(interface) for interface in interfaces}
        own = {canonical_address(self._peer, address) for address in self._addresses()}
        return _Circumstances(
            interfaces=tuple(interface for interface, refusal in refusals.items() if refusal is None),
            # Sorted, because the order in which a machine lists its addresses may change, and that is no news.
            addresses=tuple(sorted(address for address in own if address is not None)),
            refusals=tuple(f"{interface}: {refusal}" for interface, refusal in refusals.items() if refusal is not None),
        )

    async def _converse(self, circumstances: _Circumstances) -> None:
        if not circumstances.interfaces:
            _say_off(", ".join(circumstances.refusals) or "there is no IPv4 interface")
            return
        service = None
        if circumstances.addresses:
            service = _service(self._peer, circumstances.addresses, self._network_id)
        await _Conversation(circumstances.interfaces, service, self._look_at).hold()

    def _look_at(self, text: bytes) -> None:
        heard = decode_announcement(text, self._network_id)
        if heard is not None and heard[0] != self._peer:
            self._found(*heard)


class _Conversation:
    """zeroconf on some interfaces, announcing a service if there is one; TXT records that are new go to ``look_at``."""

    def __init__(
        self, interfaces: tuple[str, ...], service: ServiceInfo | None, look_at: Callable[[bytes], None]
    ) -> None:
        self._interfaces = interfaces
        self._service = service
        self._look_at = look_at
        self._ear = _Ear(trio.lowlevel.current_trio_token(), self._wake)
        self._heard = trio.Event()
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._opened = trio.Event()

    async def hold(self) -> None:
        """Converse until cancelled. Sockets and thread are gone when it returns."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry)
                try:
                    await self._opened.wait()
                    nursery.start_soon(self._ask)
                    nursery.start_soon(self._listen)
                    await self._report_drops()
                finally:
                    self._loop.call_soon_threadsafe(self._closing.set)
        finally:
            self._loop.close()

    async def _carry(self) -> None:
        # A limiter of its own: the thread lives as long as the conversation, and is no place for others to wait.
        try:
            await trio.to_thread.run_sync(self._in_thread, limiter=trio.CapacityLimiter(1))
        except (OSError, Error) as error:
            _say_off(str(error) or type(error).__name__)

    def _in_thread(self) -> None:
        self._loop.run_until_complete(self._run_zeroconf())

    async def _run_zeroconf(self) -> None:
        """Runs on the asyncio loop. Leaving the block says goodbye; zeroconf bounds each wait of that."""
        async with AsyncZeroconf(interfaces=list(self._interfaces)) as carrier:
            self._zeroconf = carrier.zeroconf
            await self._zeroconf.async_wait_for_start(timeout=_START_TIMEOUT_S)
            self._zeroconf.async_add_listener(self._ear, None)
            announcing = None
            if self._service is not None:
                # Without asking for a second whether somebody has the name: it is random.
                announcing = asyncio.ensure_future(
                    await carrier.async_register_service(self._service, cooperating_responders=True)
                )
            trio.from_thread.run_sync(self._opened.set)
            await self._closing.wait()
            if announcing is not None:
                announcing.cancel()

    async def _ask(self) -> None:
        # Nodes that start together do not all ask together (RFC 6762 section 5.2).
        await trio.sleep(secrets.SystemRandom().uniform(0.02, 0.12))
        pause_s = 1.0
        while True:
            query = DNSOutgoing(_QUERY)
            query.add_question(DNSQuestion(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN))
            self._zeroconf.send(query)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_ASK_PAUSE_S)

    def _wake(self) -> None:
        self._heard.set()  # whichever event that is by now

    async def _listen(self) -> None:
        while True:
            await self._heard.wait()
            self._heard = trio.Event()
            while self._ear.waiting:
                self._look_at(self._ear.waiting.popleft())
                await trio.sleep(LOOK_EVERY_S)

    async def _report_drops(self) -> None:
        reported = 0
        while True:
            await trio.sleep(POLL_S)
            if (dropped := self._ear.dropped) > reported:
                logger.warning("mDNS: %d announcements came too fast and were dropped", dropped - reported)
                reported = dropped


class _Ear(RecordUpdateListener):
    """What was heard and not yet looked at: filled in zeroconf's thread, emptied from the front in trio's.

    A service gets in when it is heard first, and again after a while. A goodbye is nothing to report, nor does it make
    a difference to what is remembered: late answers come after it, and who comes back has a new name.
    """

    def __init__(self, token: trio.lowlevel.TrioToken, wake: Callable[[], None]) -> None:
        self.waiting: deque[bytes] = deque()
        self.dropped = 0
        self._remembered: OrderedDict[tuple[str, bytes], float] = OrderedDict()  # reported longest ago first
        self._token = token
        self._wake = wake

    def async_update_records(self, _zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by zeroconf with what a packet holds, or what of its cache is out of date."""
        for update in records:
            record = update.new
            if (
                isinstance(record, DNSText)
                and record.key.endswith(f".{SERVICE_TYPE}")
                and len(record.text) <= MAX_TEXT_BYTES
                and not record.is_expired(now)
            ):
                self._hear((record.key, record.text), now / 1000)

    def _hear(self, service: tuple[str, bytes], now_s: float) -> None:
        if now_s < self._remembered.get(service, -math.inf) + REPORT_AGAIN_S:
            return
        if len(self.waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self._remembered[service] = now_s
        self._remembered.move_to_end(service)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        self.waiting.append(service[1])
        self._token.run_sync_soon(self._wake, idempotent=True)


def _service(peer: PeerId, addresses: tuple[bytes, ...], network_id: str) -> ServiceInfo:
    """A node as a service under a new name. libp2p reads only the TXT record; DNS-SD wants a host and a port as well,
    and py-libp2p does not see a service without."""
    name = secrets.token_hex(16)
    ends = [[(protocol.name, value) for protocol, value in Multiaddr(address).items()][:2] for address in addresses]
    return ServiceInfo(
        SERVICE_TYPE,
        f"{name}.{SERVICE_TYPE}",
        port=int(ends[0][1][1]),
        properties=encode_announcement(peer, addresses, network_id),
        server=f"{name}.local.",
        parsed_addresses=sorted({host for (kind, host), _ in ends if kind in ("ip4", "ip6")}),
    )


def _machine_interfaces() -> list[str]:
    """The IPv4 addresses of this machine; none if the system keeps them to itself."""
    try:
        adapters = list(ifaddr.get_adapters())
    except OSError:
        return []
    return sorted({ip.ip for adapter in adapters for ip in adapter.ips if isinstance(ip.ip, str)})


def _refusal(interface: str) -> str | None:
    """Why multicast DNS cannot be spoken on an interface; ``None`` if it can.

    zeroconf would find out too, but leaves a socket open when it fails, and says nothing when all interfaces do.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            # As zeroconf does: the port is shared with other nodes and with the system's own responder.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "SO_REUSEPORT"):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(("", _MDNS_PORT))
            membership = socket.inet_aton(_MDNS_GROUP) + socket.inet_aton(interface)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _say_off(reason: str) -> None:
    logger.warning("no mDNS until the network changes; local peers are not found by themselves: %s", reason)
