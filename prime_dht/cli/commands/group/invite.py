"""``prime-dht group invite``: a capability for a member."""

from __future__ import annotations

from pathlib import Path

import click

from prime_dht.cli import options
from prime_dht.cli.capability import token_text, write_token
from prime_dht.cli.commands.group.root_key import group_prefix, load_root_key
from prime_dht.cli.ending import show
from prime_dht.cli.render import moment
from prime_dht.cli.targets import PEER_NAME
from prime_dht.ids import US_PER_S, PeerId, peer_text

MAX_EXPIRES_AT_US = (1 << 64) - 1
"""What a capability has room for: some 584,000 years after 1970."""


@click.command("invite")
@click.argument("root_key", type=click.Path(path_type=Path), metavar="KEYFILE")
@click.argument("member", type=PEER_NAME, metavar="MEMBER-PEER-ID")
@click.option(
    "--expires",
    "expires_s",
    type=options.DURATION,
    default=30 * 86_400.0,
    metavar="DURATION",
    help="How long the member can put; nothing that it puts lives longer. [default: 30d]",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write the capability to this file.")
@options.naming_network
@options.as_json
def invite(root_key: Path, member: PeerId, expires_s: float, network_id: str, out: Path | None, as_json: bool) -> None:
    """Sign a capability: a member's right to put for some time.

    KEYFILE is what `group create` made; the member's peer id is what `prime-dht id` prints. The capability is one line
    of text, of use to that member alone and in one network, so it need not be kept secret. It cannot be taken back
    before it ends. FILE may be an older capability, which it then replaces, and no other file.

    \b
    Examples:
      prime-dht group invite trainers.group 12D3Koo... --out alice.capability
      prime-dht group invite trainers.group 12D3Koo... --expires 12h > alice.capability
    """
    from prime_dht.entries.capability import grant, root_of
    from prime_dht.node.clock import SystemClock

    expires_at_us = SystemClock().now_us() + int(expires_s * US_PER_S)
    if expires_at_us > MAX_EXPIRES_AT_US:
        raise click.BadParameter("no capability lasts so long", param_hint="'--expires'")
    key_pair = load_root_key(root_key)
    capability = grant(key_pair.private_key, member=member, expires_at_us=expires_at_us, network_id=network_id)
    token = token_text(capability)
    if out is not None:
        write_token(out, capability)
    prefix = group_prefix(root_of(key_pair.public_key))
    item = {
        "prefix": prefix,
        "network": network_id,
        "member": peer_text(member),
        "expires_at_us": expires_at_us,
        "capability": token,
    }
    if out is None:
        show(item, token, as_json=as_json)
    else:
        show(item, f"{peer_text(member)} can put under {prefix} until {moment(expires_at_us)}", as_json=as_json)
