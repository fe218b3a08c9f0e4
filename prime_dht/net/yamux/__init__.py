"""Yamux over the synchronous Noise session: many streams on one connection, and few reschedules for each frame.

- :mod:`~prime_dht.net.yamux.frames`: the wire format, without I/O.
- :mod:`~prime_dht.net.yamux.stream`: one stream's state and flow control, and what a protocol handler reads and writes.
- :mod:`~prime_dht.net.yamux.connection`: the connection: dispatch, limits, and its end.
- :mod:`~prime_dht.net.yamux.muxers`: how a py-libp2p host is made to use it.
"""

from prime_dht.net.yamux.connection import FastYamux
from prime_dht.net.yamux.muxers import FastMuxers, use_fast_yamux
from prime_dht.net.yamux.stream import FastYamuxStream, Receiver

__all__ = ["FastMuxers", "FastYamux", "FastYamuxStream", "Receiver", "use_fast_yamux"]
