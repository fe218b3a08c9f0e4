"""The error tree. Everything prime_dht raises on purpose is a :class:`PrimeDHTError`.

The two protocol errors say who is to blame, as h11 does: a :class:`LocalProtocolError` is a mistake in how this node's
own code used a protocol, a :class:`RemoteProtocolError` is a peer's, and names it.
"""

from __future__ import annotations


class PrimeDHTError(Exception):
    """The root of every error that prime_dht raises."""


class ConfigError(PrimeDHTError, ValueError):
    """A setting is out of range, or settings contradict each other."""


class QueryError(PrimeDHTError):
    """An operation on the swarm failed: no peer known, none answered, or the deadline passed."""


class UnsentError(QueryError):
    """A request was not sent, for a reason of this node's own, which says nothing of the peer."""


class NoTurnError(UnsentError):
    """This node had no turn to dial a peer in time."""


class RefusedError(QueryError):
    """A peer is there, and does not store what it was asked to: its disk may be full."""


class ValidationError(PrimeDHTError, ValueError):
    """A key, value, entry or record breaks a rule or a limit."""


class StorageError(PrimeDHTError):
    """The storage backend failed, is closed, or holds something this version cannot read."""


class NotWrittenError(StorageError):
    """A write failed, and the store is certain to be as it was before."""


class BlobError(PrimeDHTError):
    """A blob cannot be stored, fetched or verified."""


class LocalProtocolError(PrimeDHTError):
    """This node's own code used a protocol wrongly."""


class RemoteProtocolError(PrimeDHTError):
    """A peer broke a protocol.

    Attributes:
        peer: the text form of the peer's id, or ``None`` where the peer is not known yet.
    """

    def __init__(self, message: str, *, peer: str | None = None) -> None:
        super().__init__(message if peer is None else f"{message} (peer {peer})")
        self.peer = peer
