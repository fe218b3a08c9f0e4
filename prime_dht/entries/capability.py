"""Capabilities: the right to write under a group's keys.

A *group* is whoever a root key says. Its keys are ``/prime/group/<root>/…``, where root is the SHA-256 of the root's
serialized libp2p public key (the 36 bytes that also enter an op id), in lowercase hexadecimal. A *capability* is an
envelope signed by the root key that names a network, a member's peer id and an expiry; every entry that the member
writes there carries it, so a replica can judge the entry by itself.

A capability covers an entry if the *entry* expires no later than the capability. That is the same at every node and at
every time, so replicas never disagree about an entry, as they would if each asked its own clock; and once a capability
has expired, nothing that it covers can still be live, not even if its holder dates entries back.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from prime_dht.entries.envelope import CAPABILITY, VerifiedEnvelopes, is_signed, open_envelope, seal
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, TimestampUs, is_peer_id
from prime_dht.pb import entry_pb2 as pb

if TYPE_CHECKING:
    from libp2p.crypto.keys import PrivateKey, PublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """What a capability says: who may write, in which group of which network, and until when. Not yet verified."""

    root: bytes
    network_id: str
    member: PeerId
    expires_at_us: TimestampUs


def capability_in(given: bytes | str) -> bytes:
    """A capability as such, or as the text that ``prime-dht group invite`` writes into a file; or none, if empty.

    Raises:
        ValidationError: it is none.
    """
    try:
        data = base64.b64decode(given.strip(), validate=True) if isinstance(given, str) else given
    except (binascii.Error, ValueError) as error:
        raise ValidationError("the capability is not what `prime-dht group invite` writes") from error
    if data:
        decode_capability(data)
    return data


def root_of(root_key: PublicKey) -> bytes:
    """The 32 bytes that name the group of a root key."""
    return hashlib.sha256(root_key.serialize()).digest()


def grant(root_key: PrivateKey, *, member: PeerId, expires_at_us: int, network_id: str) -> bytes:
    """Sign a capability.

    Raises:
        ValidationError: the root key is not Ed25519, the member is no peer id, or a value is out of range.
    """
    if not is_peer_id(member):
        raise ValidationError("a capability names its member by peer id")
    try:
        message = pb.Capability(network_id=network_id, member=member, expires_at_us=expires_at_us)
    except ValueError as error:
        raise ValidationError(f"not a capability: {error}") from error
    return seal(root_key, CAPABILITY, network_id, message.SerializeToString())


def decode_capability(data: bytes) -> Capability:
    """Read a capability, without verifying its signature.

    Raises:
        ValidationError: it is malformed.
    """
    envelope = open_envelope(data, CAPABILITY)
    try:
        message = pb.Capability.FromString(envelope.payload)
    except DecodeError as error:
        raise ValidationError("malformed capability") from error
    return Capability(
        root=hashlib.sha256(envelope.public_key).digest(),
        network_id=message.network_id,
        member=PeerId(message.member),
        expires_at_us=TimestampUs(message.expires_at_us),
    )


def check_capability(
    data: bytes,
    *,
    root: bytes,
    network_id: str,
    member: PeerId,
    expires_at_us: int,
    verified: VerifiedEnvelopes | None = None,
) -> None:
    """Check that a capability of the group ``root`` covers a member's entry that expires at ``expires_at_us``.

    Raises:
        ValidationError: it is malformed, of another group, network or member, ends too early, or is not the root's.
    """
    if not data:
        raise ValidationError("a group's key takes only entries that carry a capability")
    capability = decode_capability(data)
    if capability.root != root:
        raise ValidationError("the capability is of another group")
    if capability.network_id != network_id:
        raise ValidationError("the capability is of another network")
    if capability.member != member:
        raise ValidationError("the capability names another member")
    if capability.expires_at_us < expires_at_us:
        raise ValidationError("the capability ends before the entry expires: give the entry a shorter ttl")
    statement_id = open_envelope(data, CAPABILITY).statement_id(CAPABILITY.domain(network_id))
    if not is_signed(data, CAPABILITY, network_id, statement_id=statement_id, verified=verified):
        raise ValidationError("the capability was not signed by the group's root key")
