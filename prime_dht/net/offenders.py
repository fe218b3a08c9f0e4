"""Peers that break the protocol, and when to have nothing more to do with them. Pure: ``now_s`` is any clock's.

An *offence* is a breach of protocol that was noticed, in a request or in an answer. A peer's *guilt* grows by one with
each and falls by one for each ``atonement_s`` without one. At ``tolerated`` the peer is *backed off*: for a time it is
neither answered nor asked. The time doubles with each back-off that follows, and from the ``disconnected_from``-th on
the peer is *shunned* as well: its connection is closed. Who commits no offence for ``forgotten_after_s`` starts afresh.

One mistake changes nothing for an honest peer, nor do its repetitions: a client repeats a request whose stream was
reset under it, so one mistake is two offences.

Peer ids are free. What is bounded here is therefore what one identity can cost, and with it one connection; how many
connections a party can have is :mod:`prime_dht.net.hardening.inbound`'s. The table is bounded too; beyond, the least
guilty half is forgotten, so a crowd of newcomers cannot hide the worst.

>>> offenders, peer = Offenders(OffenderSettings(tolerated=3, back_off_s=10)), PeerId(b"peer")
>>> [offenders.charge(peer, now_s=0).name for _ in range(3)]
['TOLERATED', 'TOLERATED', 'BACKED_OFF']
>>> offenders.standing(peer, now_s=9).name, offenders.standing(peer, now_s=10).name
('BACKED_OFF', 'TOLERATED')
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from prime_dht.ids import PeerId


class Standing(Enum):
    """How a peer is treated."""

    TOLERATED = "tolerated"
    """Like everybody else."""

    BACKED_OFF = "backed off"
    """Its streams are reset unread, and it is not asked."""

    SHUNNED = "shunned"
    """That, and its connection is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OffenderSettings:
    """What is tolerated, and what follows."""

    tolerated: int = 10
    """Guilt at which a peer is backed off; by then an honest one would have stopped."""

    atonement_s: float = 10.0
    """Seconds without an offence for which guilt falls by one."""

    back_off_s: float = 10.0
    """Seconds of the first back-off."""

    max_back_off_s: float = 3600.0
    """Seconds of the longest."""

    disconnected_from: int = 3
    """The back-off, counted from 1, from which on the connection is closed as well."""

    forgotten_after_s: float = 3600.0
    """Seconds without an offence, and out of back-off, after which a peer starts afresh."""

    max_peers: int = 10_000
    """Peers of which offences are remembered."""


@dataclass(slots=True)
class _Offender:
    offences: int = 0
    guilt: int = 0
    last_s: float = 0.0
    back_offs: int = 0
    until_s: float = 0.0

    def worth_remembering(self) -> tuple[float, int]:
        return (self.until_s, self.offences)


class Offenders:
    """Who broke the protocol, how often, and what is to be done about it.

    Attributes:
        total: offences of all peers, forgotten ones included.
    """

    def __init__(self, settings: OffenderSettings | None = None) -> None:
        self._settings = settings or OffenderSettings()
        self._peers: dict[PeerId, _Offender] = {}
        self.total = 0

    def charge(self, peer: PeerId, *, now_s: float) -> Standing:
        """A peer has committed an offence; its standing from here on.

        While it is backed off, what it has left under way may offend on: that is counted, and does not lengthen the
        time.
        """
        self.total += 1
        offender = self._remembered(peer, now_s)
        offender.offences += 1
        if now_s >= offender.until_s:
            atoned = int((now_s - offender.last_s) / self._settings.atonement_s)
            offender.guilt = max(0, offender.guilt - atoned) + 1
            if offender.guilt >= self._settings.tolerated:
                self._back_off(offender, now_s)
        offender.last_s = now_s
        return self.standing(peer, now_s=now_s)

    def standing(self, peer: PeerId, *, now_s: float) -> Standing:
        """How a peer is to be treated now."""
        offender = self._peers.get(peer)
        if offender is None or now_s >= offender.until_s:
            return Standing.TOLERATED
        return Standing.SHUNNED if offender.back_offs >= self._settings.disconnected_from else Standing.BACKED_OFF

    def wait_s(self, peer: PeerId, *, now_s: float) -> float:
        """How much longer a peer is backed off; 0 if it is not."""
        offender = self._peers.get(peer)
        return 0.0 if offender is None else max(0.0, offender.until_s - now_s)

    def offended_since(self, peer: PeerId, *, at_s: float) -> bool:
        """Whether a peer has committed an offence later than at a time."""
        offender = self._peers.get(peer)
        return offender is not None and offender.last_s > at_s

    def backed_off(self, *, now_s: float) -> int:
        """How many peers are backed off now."""
        return sum(now_s < offender.until_s for offender in self._peers.values())

    @property
    def offences(self) -> Mapping[PeerId, int]:
        """How many offences each peer has committed that is remembered."""
        return {peer: offender.offences for peer, offender in self._peers.items()}

    def _back_off(self, offender: _Offender, now_s: float) -> None:
        settings = self._settings
        wait_s = min(settings.back_off_s * 2.0 ** min(offender.back_offs, 64), settings.max_back_off_s)
        offender.back_offs += 1
        offender.until_s = now_s + wait_s
        offender.guilt = 0

    def _remembered(self, peer: PeerId, now_s: float) -> _Offender:
        offender = self._peers.get(peer)
        if offender is not None and now_s >= max(offender.last_s, offender.until_s) + self._settings.forgotten_after_s:
            offender = None
        if offender is None:
            if peer not in self._peers and len(self._peers) >= self._settings.max_peers:
                self._forget_half()
            offender = self._peers[peer] = _Offender(last_s=now_s)
        return offender

    def _forget_half(self) -> None:
        worst_first = sorted(self._peers.items(), key=lambda item: item[1].worth_remembering(), reverse=True)
        self._peers = dict(worst_first[: self._settings.max_peers // 2])
