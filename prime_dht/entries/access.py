"""Who may write where.

Three kinds of key in the namespace ``/prime/``:

- *open*: ``/prime/<anything>`` takes any publisher's entries;
- *own*: ``/prime/own/<peer id>/<rest>`` takes only that peer's; the peer id is its base58 text;
- *group*: ``/prime/group/<root>/<rest>`` takes only entries with a capability of that group
  (:mod:`prime_dht.entries.capability`).

Everybody decides this alike, from the entry alone.

>>> key_rule(Key(b"/prime/model:resnet"))
OpenKey()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from prime_dht.entries.capability import check_capability, root_of
from prime_dht.entries.entry import Entry
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, peer_from_text, peer_text

if TYPE_CHECKING:
    from libp2p.crypto.keys import PublicKey

_PRIME = b"/prime/"
_OWN = b"/prime/own/"
_GROUP = b"/prime/group/"
_ROOT_HEX_CHARS = 64
_LOWERCASE_HEX = frozenset(b"0123456789abcdef")


@dataclass(frozen=True, slots=True)
class OpenKey:
    """Anybody may write."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """One peer may write."""

    owner: PeerId


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Those may write to whom the root key gave a capability."""

    root: bytes


KeyRule = OpenKey | OwnKey | GroupKey


def own_key(owner: PeerId, rest: bytes) -> Key:
    """The key that only ``owner`` can write.

    >>> owner = peer_from_text("12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5")
    >>> own_key(owner, b"x")
    b'/prime/own/12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5/x'
    """
    return Key(_OWN + peer_text(owner).encode() + b"/" + rest)


def group_key(root_key: PublicKey, rest: bytes) -> Key:
    """The key that only members of the root key's group can write."""
    return Key(_GROUP + root_of(root_key).hex().encode() + b"/" + rest)


def shares_slots(key: Key) -> bool:
    """Whether the slots of a key are for all its publishers together.

    In a group's key each has as many of its own: no stranger can fill it, but else a single member could.

    >>> shares_slots(Key(b"/prime/k")), shares_slots(Key(b"/prime/group/" + b"0" * 64 + b"/k"))
    (True, False)
    """
    return not key.startswith(_GROUP)


def key_rule(key: Key) -> KeyRule:
    """Who may write a key.

    Raises:
        ValidationError: it is not in ``/prime/``, or looks like an own or group key but is none.
    """
    if key.startswith(_OWN):
        text, _, rest = key.removeprefix(_OWN).partition(b"/")
        return OwnKey(_owner(text, rest))
    if key.startswith(_GROUP):
        root, _, rest = key.removeprefix(_GROUP).partition(b"/")
        if len(root) != _ROOT_HEX_CHARS or not _LOWERCASE_HEX.issuperset(root) or not rest:
            raise ValidationError("a group's key is /prime/group/<64 lowercase hexadecimal digits>/<rest>")
        return GroupKey(bytes.fromhex(root.decode()))
    if not key.startswith(_PRIME) or key == _PRIME:
        raise ValidationError("an entry's key is /prime/<rest>")
    return OpenKey()


def check_writer(entry: Entry, rule: KeyRule, verified: VerifiedEnvelopes | None = None) -> None:
    """Check that the entry's publisher may write its key, whose rule is given; its own signature is not verified here.

    Raises:
        ValidationError: the key is another's own, or a group's and the entry carries no capability that covers it.
    """
    header = entry.header
    match rule:
        case OpenKey():
            pass
        case OwnKey(owner):
            if entry.publisher != owner:
                raise ValidationError(f"only {peer_text(owner)} writes its own keys")
        case GroupKey(root):
            check_capability(
                header.capability,
                root=root,
                network_id=header.network_id,
                member=entry.publisher,
                expires_at_us=header.expires_at_us,
                verified=verified,
            )
        case _:
            assert_never(rule)


def _owner(text: bytes, rest: bytes) -> PeerId:
    """The peer that an own key names, in the one spelling allowed: other spellings would be other keys."""
    try:
        owner = peer_from_text(text.decode("ascii"))
    except (UnicodeDecodeError, ValidationError) as error:
        raise ValidationError("an own key is /prime/own/<peer id>/<rest>") from error
    if peer_text(owner).encode() != text or not rest:
        raise ValidationError("an own key is /prime/own/<peer id>/<rest>")
    return owner
