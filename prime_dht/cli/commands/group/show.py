"""``prime-dht group show``: what a root key or a capability is for."""

from __future__ import annotations

from pathlib import Path

import click

from prime_dht.cli import ending, options
from prime_dht.cli.capability import read_token
from prime_dht.cli.commands.group.root_key import group_prefix, load_root_key
from prime_dht.cli.ending import Status
from prime_dht.cli.render import moment, visible
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import peer_text


@click.command("show")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@options.as_json
def show(file: Path, as_json: bool) -> int:
    """Say what a root key or a capability is for.

    Of either, which group's it is; of a capability also for whom, until when, and if it is valid now. Exits with 1 if a
    capability has ended, or was not signed by the root key that it names.

    \b
    Examples:
      prime-dht group show trainers.group
      prime-dht group show alice.capability
    """
    try:
        capability = read_token(file)
    except ValidationError as no_capability:
        return _show_root_key(file, no_capability, as_json=as_json)
    return _show_capability(capability, as_json=as_json)


def _show_root_key(file: Path, no_capability: ValidationError, *, as_json: bool) -> int:
    from prime_dht.entries.capability import root_of

    try:
        root = root_of(load_root_key(file).public_key)
    except ConfigError as no_root_key:
        raise ConfigError(f"{no_capability}; and no root key: {no_root_key}") from no_root_key
    ending.show(
        {"root_key": str(file), "prefix": group_prefix(root)}, f"group    {group_prefix(root)}", as_json=as_json
    )
    return Status.DONE


def _show_capability(token: bytes, *, as_json: bool) -> int:
    from prime_dht.entries.capability import check_capability, decode_capability
    from prime_dht.node.clock import SystemClock

    capability = decode_capability(token)
    now_us = SystemClock().now_us()
    try:
        check_capability(
            token,
            root=capability.root,
            network_id=capability.network_id,
            member=capability.member,
            expires_at_us=min(now_us, capability.expires_at_us),
        )
        problem = "it has ended" if capability.expires_at_us <= now_us else None
    except ValidationError as error:
        problem = str(error)
    item = {
        "prefix": group_prefix(capability.root),
        "network": capability.network_id,
        "member": peer_text(capability.member),
        "expires_at_us": capability.expires_at_us,
        "valid": problem is None,
        "problem": problem,
    }
    lines = (
        f"group    {group_prefix(capability.root)}",
        f"network  {visible(capability.network_id)}",
        f"member   {peer_text(capability.member)}",
        f"ends     {moment(capability.expires_at_us)}",
        "valid    now" if problem is None else f"invalid  {problem}",
    )
    ending.show(item, "\n".join(lines), as_json=as_json)
    return Status.DONE if problem is None else Status.NOT_FOUND
