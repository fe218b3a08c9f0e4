"""``prime-dht group``: keys under which only those write whom somebody has invited."""

from __future__ import annotations

import click

from prime_dht.cli.commands.group.create import create
from prime_dht.cli.commands.group.invite import invite
from prime_dht.cli.commands.group.show import show


@click.group("group")
def command() -> None:
    """Make a group, invite members, see what they were given.

    Under the keys of a group, /prime/group/<hash>/..., only its members can put; anybody can read. A member is a peer
    id to whom the holder of the group's root key gave a capability. No node needs to be told of either: what a member
    puts carries the capability, and every node checks it.

    \b
    Examples:
      prime-dht group create trainers                      once; keep trainers.group safe
      prime-dht id --data-dir ./me                         each member tells its peer id
      prime-dht group invite trainers.group 12D3Koo... --out alice.capability
      prime-dht put /prime/group/<hash>/model v1 --data-dir ./me --capability alice.capability
      prime-dht group show alice.capability

    \b
    Exit status:
      0  done
      1  show: the capability is not valid now
      2  a mistake in the arguments, or a file that cannot be used
    """


for subcommand in (create, invite, show):
    command.add_command(subcommand)
