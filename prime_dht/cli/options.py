"""The options that subcommands share, and the types of their arguments."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import click

from prime_dht.errors import ValidationError

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


class Duration(click.ParamType[float]):
    """Seconds, or a number with a unit.

    >>> Duration().convert("90", None, None), Duration().convert("1.5h", None, None)
    (90.0, 5400.0)
    """

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        parsed = _DURATION.fullmatch(value)
        seconds = float(parsed[1]) * _UNITS_S[parsed[2]] if parsed else 0.0
        if not 0.0 < seconds < math.inf:
            self.fail(f"{value!r} is not a duration such as 90, 90s, 30m, 12h or 7d", param, ctx)
        return seconds


class PeerAddress(click.ParamType[str]):
    """A full multiaddr, ending in ``/p2p/<peer id>``."""

    name = "multiaddr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from prime_dht.net.dialer import split_peer_address

        try:
            split_peer_address(value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Raw(click.ParamType[bytes]):
    """An argument's bytes as the shell gave them, whether or not they are text in this locale."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:  # noqa: ARG002
        return os.fsencode(value)


peers = click.option(
    "--peer",
    "peers",
    type=PeerAddress(),
    multiple=True,
    metavar="MULTIADDR",
    envvar="PRIME_DHT_PEER",
    help="A node to join through, as `prime-dht run` prints it; repeat for several. "
    "[env: PRIME_DHT_PEER, separated by spaces]",
)

data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    envvar="PRIME_DHT_DATA_DIR",
    help="Where identity and data are kept; made if it is not there. Without it, nothing is kept. "
    "[env: PRIME_DHT_DATA_DIR]",
)

identity_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Sign and ask as the identity in this directory, not as somebody new. A running node has its own to itself.",
)

timeout = click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    default=30.0,
    metavar="DURATION",
    envvar="PRIME_DHT_TIMEOUT",
    help="How long it may take altogether: seconds, or 2m. [default: 30; env: PRIME_DHT_TIMEOUT]",
)

subkey = click.option(
    "--subkey",
    type=Raw(),
    default=b"",
    help="Names one of several values that a publisher keeps under one key.",
)

verbose = click.option(
    "-v",
    "--verbose",
    count=True,
    help="Say more on standard error; -vv for py-libp2p's messages as well.",
)
