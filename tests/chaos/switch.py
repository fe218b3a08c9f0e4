"""A switch in user space: between network namespaces it carries IP packets, late, not all, and not across a cut.

As a program, ``python -m tests.chaos.switch <socket> <seed>``, it takes TUN devices over a Unix socket, each with the
IPv4 address behind it; one for the same address takes the place of the one before. On standard input come the addresses
of one half of a cut, a JSON array a line; an empty one heals it. Each is answered by a line, and the end of the input
ends the switch, which then says in a JSON object what became of packets.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from random import Random
from typing import Literal

DELAY_S = 0.05
LOSS = 0.02
PACKETS_IN_TURN = 64
PACKET_BYTES = 1 << 16
IPV4_HEADER_BYTES = 20


@dataclass(slots=True)
class Counts:
    """What became of packets: carried, lost by chance, dropped because of a cut, addressed to nobody there."""

    carried: int = 0
    lost: int = 0
    cut: int = 0
    nowhere: int = 0


class Air:
    """The way between all nodes. Times are seconds of any clock that does not go backwards.

    >>> air = Air(Random(1), delay_s=0.05, loss=0.0)
    >>> packet = bytes([0x45]) + bytes(11) + bytes([10, 0, 0, 1]) + bytes([10, 0, 0, 2]) + b"payload"
    >>> air.take(packet, now_s=7.0)
    >>> list(air.due(now_s=7.04)), [address for address, _ in air.due(now_s=7.05)]
    ([], ['10.0.0.2'])
    """

    def __init__(self, rng: Random, *, delay_s: float = DELAY_S, loss: float = LOSS) -> None:
        self.counts = Counts()
        self._rng = rng
        self._delay_s = delay_s
        self._loss = loss
        self._half: frozenset[str] = frozenset()
        self._under_way: deque[tuple[float, str, bytes]] = deque()

    def cut(self, half: frozenset[str]) -> None:
        """From here on these addresses and all others hear only those on their own side; with none, all hear all."""
        self._half = half

    def take(self, packet: bytes, *, now_s: float) -> None:
        """A node sends a packet. Only IPv4 goes further."""
        if len(packet) < IPV4_HEADER_BYTES or packet[0] >> 4 != 4:
            return
        sender, receiver = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
        if (sender in self._half) != (receiver in self._half):
            self.counts.cut += 1
        elif self._rng.random() < self._loss:
            self.counts.lost += 1
        else:
            self._under_way.append((now_s + self._delay_s, receiver, packet))

    def due(self, *, now_s: float) -> Iterator[tuple[str, bytes]]:
        """The packets that have arrived by now, and where."""
        while self._under_way and self._under_way[0][0] <= now_s:
            _, receiver, packet = self._under_way.popleft()
            yield receiver, packet

    def wait_s(self, *, now_s: float) -> float | None:
        """How long until the next packet arrives; ``None`` if none is under way."""
        return max(0.0, self._under_way[0][0] - now_s) if self._under_way else None


class Switch:
    """Devices around the air. ``listener`` is where they are handed over."""

    def __init__(self, air: Air, listener: socket.socket) -> None:
        self._air = air
        self._listener = listener
        self._devices: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Carry packets until standard input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(self._air.wait_s(now_s=time.monotonic())):
                if key.fileobj is self._listener:
                    self._adopt()
                elif key.fd != sys.stdin.fileno():
                    self._read(key.fd)
                elif not self._obey(sys.stdin.readline()):  # one line at a time: the next comes after the answer
                    return
            for address, packet in self._air.due(now_s=time.monotonic()):
                self._write(address, packet)

    def _obey(self, line: str) -> bool:
        """Cut or heal; ``False`` at the end of the input."""
        if line:
            self._air.cut(frozenset(json.loads(line)))
            print("done", flush=True)
        return bool(line)

    def _adopt(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            address, (device, *_), _, _ = socket.recv_fds(connection, 64, 1)
        os.set_blocking(device, False)
        self._drop(address.decode())
        self._devices[address.decode()] = device
        self._selector.register(device, selectors.EVENT_READ)

    def _drop(self, address: str) -> None:
        device = self._devices.pop(address, None)
        if device is not None:
            self._selector.unregister(device)
            os.close(device)

    def _read(self, device: int) -> None:
        for _ in range(PACKETS_IN_TURN):
            try:
                packet = os.read(device, PACKET_BYTES)
            except BlockingIOError:
                return
            self._air.take(packet, now_s=time.monotonic())

    def _write(self, address: str, packet: bytes) -> None:
        device = self._devices.get(address)
        if device is None:
            self._air.counts.nowhere += 1
            return
        try:
            os.write(device, packet)
            self._air.counts.carried += 1
        except BlockingIOError:  # its queue is full, as a real one's can be
            self._air.counts.lost += 1


def main(path: str, seed: str) -> Literal[0]:
    """Returns the exit status."""
    air = Air(Random(f"{seed}/packets"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        Switch(air, listener).run()
    with suppress(BrokenPipeError):  # the run may have been killed
        os.write(sys.stdout.fileno(), json.dumps(asdict(air.counts)).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
