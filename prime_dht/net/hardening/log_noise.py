"""P6, P13: what a peer does wrong is not an ERROR of this node.

Defect (py-libp2p 0.8.1): modules log at WARNING and ERROR, some in several lines with a traceback, what peers cause at
will: refused dials, broken handshakes, denied connections, identifies that time out, each TLS connection. A peer can
fill a disk with it, and a real fault drowns. A listener for whose connections there are no open files left says so ten
times a second, with a traceback each time.

Why this works: a filter on those modules' loggers turns their records into DEBUG ones. What matters of them reaches the
caller as an exception and is reported there. What a listener says is heard once a minute. Loggers belong to the
process, so this is done once for all hosts; it is not done for hosts made elsewhere, whose owner decides about logging.

It can go when these records are DEBUG upstream.
"""

from __future__ import annotations

import logging
import math

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


LISTENERS = "trio.serve_listeners"
"""The logger of whoever accepts connections; it says only that this is not possible just now."""

TELL_AGAIN_S = 60.0
"""After that a listener may say so again."""


class _Demoted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class _NowAndThen(logging.Filter):
    _told_at_s = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        if 0 <= record.created - self._told_at_s < TELL_AGAIN_S:
            return False
        self._told_at_s = record.created
        record.exc_info = None  # which says nothing that the line does not
        return True


_DEMOTED, _NOW_AND_THEN = _Demoted(), _NowAndThen()


def quieten() -> None:
    """Demote the records of :data:`PEER_CAUSED` to DEBUG, and thin out those of listeners. Idempotent."""
    # A logger keeps a filter once, however often it is added.
    for name in PEER_CAUSED:
        logging.getLogger(name).addFilter(_DEMOTED)
    logging.getLogger(LISTENERS).addFilter(_NOW_AND_THEN)
