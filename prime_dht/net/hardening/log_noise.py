"""P6, P13: what a peer does wrong is not an ERROR of this node.

Defect (py-libp2p 0.8.1): modules log at WARNING and ERROR, some in several lines with a traceback, what peers cause at
will: refused dials, broken handshakes, denied connections, identifies that time out, each TLS connection. A peer can
fill a disk with it, and a real fault drowns.

Why this works: a filter on those modules' loggers turns their records into DEBUG ones. What matters of them reaches
the caller as an exception and is reported there. Loggers belong to the process, so this is done once for all hosts; it
is not done for hosts made elsewhere, whose owner decides about logging.

It can go when these records are DEBUG upstream.
"""

from __future__ import annotations

import logging

PEER_CAUSED = (
    "libp2p.host.basic_host",
    "libp2p.identity.identify.identify",
    "libp2p.identity.identify_push.identify_push",
    "libp2p.identity.update",
    "libp2p.network.swarm",
    "libp2p.protocol_muxer.multiselect_client",
    "libp2p.security.noise.messages",
    "libp2p.security.noise.patterns",
    "libp2p.security.tls.io",
    "libp2p.security.tls.transport",
    "libp2p.stream_muxer.yamux.yamux",
    "libp2p.transport.tcp.tcp",
    "zeroconf",
)
"""Loggers of modules that log what peers do."""


class _Demoted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


_DEMOTED = _Demoted()


def quieten() -> None:
    """Demote the records of :data:`PEER_CAUSED` to DEBUG. Idempotent."""
    for name in PEER_CAUSED:
        # A logger keeps a filter once, however often it is added.
        logging.getLogger(name).addFilter(_DEMOTED)
