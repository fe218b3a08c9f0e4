"""What anyone can check of rounds, with no node: outcomes that are proved, and who the members are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prime_dht.entries import capability_in, check_capability, decode_capability
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.agreement import Commit, Members, decode_commit, entry_proofs
from prime_dht.ml.gradients.announcement import checked_group
from prime_dht.ml.rounds.posts import round_key
from prime_dht.node.arguments import peer_id_of, several

GivenMembers = Members | Mapping[PeerId | str, int] | Mapping[PeerId, int] | Mapping[str, int] | Iterable[PeerId | str]
"""Members by peer id, or the weights of their votes by peer id."""


def verify_commit(
    commit: bytes,
    *,
    members: GivenMembers,
    group: str | bytes,
    network_id: str,
    round_number: int,
) -> Commit:
    """Check that bytes prove the outcome of a round: that members who are a quorum signed it in this round.

    Args:
        commit: what :attr:`~prime_dht.ml.rounds.Committed.proof` is, and what lies under the round's key.
        members: of the round, as for :class:`~prime_dht.ml.rounds.RoundMember`; whoever asks has to know them.
        group: the root, or what the group's keys begin with.

    Raises:
        ValidationError: it proves nothing, or something else; the text says what is wrong.
    """
    root = checked_group(group)
    decoded = decode_commit(commit)
    decoded.check(round_number, as_members(members), entry_proofs(network_id, round_key(root, round_number)))
    return decoded


def members_of(capabilities: Iterable[bytes | str], *, group: str | bytes, network_id: str) -> Members:
    """Those to whom the root of a group gave capabilities, with one vote each, whether or not these have ended since.

    Raises:
        ValidationError: one is not of the group, or was not signed by its root.
    """
    root = checked_group(group)
    members = []
    for data in map(capability_in, capabilities):
        capability = decode_capability(data)
        check_capability(data, root=root, network_id=network_id, member=capability.member, expires_at_us=0)
        members.append(capability.member)
    return Members.equal(members)


def as_members(members: GivenMembers) -> Members:
    """Members, if need be with one vote each.

    Raises:
        ValidationError: one is no peer id, or is given two weights, or they are none or too many.
    """
    if isinstance(members, Members):
        return members
    if not isinstance(members, Mapping):
        return Members.equal(map(peer_id_of, several("members", members)))
    weights = {peer_id_of(one): weight for one, weight in members.items()}
    if len(weights) < len(members):
        raise ValidationError("a member is given two weights, for its peer id as bytes and as text")
    return Members(weights)
