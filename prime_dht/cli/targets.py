"""The arguments of commands that ask for, or about, a peer or a blob."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import click

from prime_dht.blobs.cid import Cid
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, peer_from_text, wire_key


@dataclass(frozen=True, slots=True)
class Target:
    """A peer, and the full multiaddr by which it was named, if it was."""

    peer: PeerId
    address: str | None = None


class PeerName(click.ParamType[PeerId]):
    """A peer id in base58."""

    name = "peer id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PeerId:
        if isinstance(value, bytes):
            return PeerId(value)
        try:
            return peer_from_text(value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)


class PeerOrAddress(click.ParamType[Target]):
    """A peer id, or a full multiaddr, which ends in ``/p2p/<peer id>``."""

    name = "peer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        if isinstance(value, Target):
            return value
        try:
            if not value.startswith("/"):
                return Target(peer_from_text(value))
            from prime_dht.net.dialer import split_peer_address

            return Target(split_peer_address(value)[0], value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)


class CidText(click.ParamType[Cid]):
    """The CID of a blob."""

    name = "cid"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Cid:
        if isinstance(value, Cid):
            return value
        try:
            return Cid.from_text(value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)


class KeyOrPeer(click.ParamType[bytes]):
    """A peer id as its bytes, or else a key in its wire form: both are hashed to a point of the keyspace."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        try:
            return peer_from_text(value)
        except ValidationError:
            pass  # then it is a key
        try:
            return wire_key(os.fsencode(value))
        except ValidationError as error:
            self.fail(str(error), param, ctx)
