"""The options that subcommands share, and the types of their arguments."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prime_dht.cli.logs import log_to_stderr
from prime_dht.errors import ConfigError, StorageError, ValidationError
from prime_dht.quantities import parse_duration_s, parse_size_bytes

if TYPE_CHECKING:
    from prime_dht.settings import Settings
    from prime_dht.settings.toml_lines import KeyPath

T = TypeVar("T")


class Parsed(click.ParamType[T]):
    """What a function makes of an argument, which says with a :class:`ValidationError` what is wrong with it.

    Args:
        name: what it is.
        kind: of what it is made into; a default that is one stays.
        parse: the function.
    """

    def __init__(self, name: str, kind: type[T], parse: Callable[[str], T]) -> None:
        self.name = name
        self._kind = kind
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> T:
        if isinstance(value, self._kind):
            return value
        try:
            return self._parse(value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)


DURATION = Parsed("duration", float, parse_duration_s)
"""Seconds, or a number with a unit."""

SIZE = Parsed("size", int, parse_size_bytes)
"""Bytes, or a number with a unit."""


class PeerAddress(click.ParamType[str]):
    """A full multiaddr, ending in ``/p2p/<peer id>``."""

    name = "multiaddr"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from prime_dht.net.address_book import split_peer_address

        try:
            split_peer_address(value)
        except ValidationError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Count(click.IntRange):
    """A whole number, from 1 on."""

    name = "whole number"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return min(super().convert(value, param, ctx), sys.maxsize)  # of nothing are there more


class Directory(click.Path):
    """A directory, or the path where one can be made."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        value = os.path.expanduser(value)  # no shell does it behind --data-dir=, and nobody wants a directory named ~
        # click takes devices and pipes for directories, and nothing, as of a variable that is not set, for this one.
        if not os.fspath(value) or (os.path.exists(value) and not os.path.isdir(value)):
            self.fail(f"{os.fsdecode(value)!r} is not a directory", param, ctx)
        return super().convert(value, param, ctx)


STREAM = Path("-")
"""What :class:`FileOrStream` gives for a standard stream."""


class FileOrStream(click.Path):
    """A file, or ``-``, which stands for a standard stream; a file of that name is ``./-``."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if path != STREAM or os.fspath(value) == "-":
            return path
        try:
            return Path.cwd() / path  # as a path by itself ./- is - too
        except OSError as error:  # the directory was removed
            self.fail(f"{value}: {error.strerror}", param, ctx)


class Raw(click.ParamType[bytes]):
    """An argument's bytes as the shell gave them, whether or not they are text in this locale."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:  # noqa: ARG002
        return os.fsencode(value)


_Body = Callable[..., int | None]

_peers = click.option(
    "--peer",
    "peers",
    type=PeerAddress(),
    multiple=True,
    metavar="MULTIADDR",
    help="A node to join through, as `prime-dht run` prints it; repeat for several. "
    "[env: PRIME_DHT_PEER, separated by spaces]",
)

_data_dir = click.option(
    "--data-dir",
    type=Directory(),
    metavar="DIR",
    help="Where identity and data are kept; made if it is not there. Without it, nothing is kept. "
    "[env: PRIME_DHT_DATA_DIR]",
)

_identity_dir = click.option(
    "--data-dir",
    type=Directory(),
    metavar="DIR",
    help="Sign and ask as the identity in this directory, not as somebody new. A running node has its own to itself.",
)

_mdns = click.option(
    "--mdns/--no-mdns",
    "mdns",
    default=None,
    help="Find nodes on the local network, and be found. [env: PRIME_DHT_MDNS]",
)

_network = click.option(
    "--network",
    "network_id",
    metavar="NAME",
    help="The swarm's name; nodes of different names do not mix. [default: prime; env: PRIME_DHT_DHT_NETWORK_ID]",
)

_config_file = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    envvar="PRIME_DHT_CONFIG",
    help="Read settings from this file; variables and options stand over it. See `prime-dht config`. "
    "[env: PRIME_DHT_CONFIG]",
)

_timeout = click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default=30.0,
    metavar="DURATION",
    envvar="PRIME_DHT_TIMEOUT",
    help="How long it may take altogether, or, once a blob moves, stand still: seconds, or 2m. "
    "[default: 30; env: PRIME_DHT_TIMEOUT]",
)

as_json = click.option("--json", "as_json", is_flag=True, help="Print results as JSON, each on one line.")

_log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    envvar="PRIME_DHT_LOG_FORMAT",
    help="How the log on standard error is written. [default: text; env: PRIME_DHT_LOG_FORMAT]",
)

_listen = click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    help="Where to listen; repeat for several. [default: /ip4/0.0.0.0/tcp/0, any free port; env: PRIME_DHT_LISTEN]",
)

_redis = click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="Keep the entries in this Redis server, redis://host:port, not in a file. [env: PRIME_DHT_REDIS]",
)

_client = click.option(
    "--client", is_flag=True, help="Only ask: nobody else relies on this node. [env: PRIME_DHT_DHT_MODE=client]"
)

ttl = click.option(
    "--ttl",
    "ttl_s",
    type=DURATION,
    metavar="DURATION",
    help="How long the value lives: seconds, or 30m, 12h, 7d. [default: 1d]",
)

subkey = click.option(
    "--subkey",
    type=Raw(),
    default=b"",
    help="Names one of several values that a publisher keeps under one key.",
)

max_size = click.option(
    "--max-size",
    "max_bytes",
    type=SIZE,
    metavar="SIZE",
    help="Take no blob of more: bytes, or 64MiB, 2GiB. It is refused before it is fetched. [default: of any size]",
)

verbose = click.option(
    "-v",
    "--verbose",
    count=True,
    help="Say more on standard error; -vv for py-libp2p's messages as well.",
)


def asking(body: _Body) -> _Body:
    """Give a command that asks the swarm something its options; it gets them as ``session``, a :class:`Session`."""

    @wraps(body)
    def command(
        *,
        data_dir: Path | None,
        timeout_s: float,
        as_json: bool,
        log_format: str,
        verbose: int,
        peers: tuple[str, ...],
        mdns: bool | None,
        network_id: str | None,
        config_file: Path | None,
        **others: Any,
    ) -> int | None:
        from prime_dht.cli.client import Session
        from prime_dht.config import Mode

        log_to_stderr(logging.WARNING, verbose=verbose, as_json=log_format == "json")
        config = _settings(config_file, peers=peers, mdns=mdns, network_id=network_id).config
        # What stores and listens is for nodes that stay; an identity is used where it is asked for, and only there.
        config = replace(
            config,
            listen=(),
            announce=(),
            redis_url=None,
            data_dir=data_dir,
            blocks_dir=None if data_dir is None else config.blocks_dir,
            dht=replace(config.dht, mode=Mode.CLIENT, operation_timeout_s=timeout_s),
        )
        session = Session(config=config, timeout_s=timeout_s, as_json=as_json, verbose=verbose)
        return body(session=session, **others)

    return _with(command, _peers, _identity_dir, _mdns, _network, _config_file, _timeout, as_json, _log_format, verbose)


def serving(body: _Body) -> _Body:
    """Give a command that runs nodes its options; it gets them as ``config``, a :class:`NodeConfig`."""

    @configuring
    @wraps(body)
    def configured(*, settings: Settings, **others: Any) -> int | None:
        return body(config=settings.config, **others)

    @wraps(configured)
    def command(*, log_format: str, verbose: int, **others: Any) -> int | None:
        log_to_stderr(logging.INFO, verbose=verbose, as_json=log_format == "json")
        return configured(**others)

    return _with(command, _log_format, verbose)


def configuring(body: _Body) -> _Body:
    """Give a command every option that is a setting of a node; it gets them as ``settings``, a :class:`Settings`."""

    @wraps(body)
    def command(
        *,
        listen: tuple[str, ...],
        peers: tuple[str, ...],
        data_dir: Path | None,
        redis_url: str | None,
        mdns: bool | None,
        client: bool,
        network_id: str | None,
        config_file: Path | None,
        **others: Any,
    ) -> int | None:
        from prime_dht.config import Mode

        settings = _settings(
            config_file,
            listen=listen,
            peers=peers,
            data_dir=data_dir,
            redis_url=redis_url,
            mdns=mdns,
            mode=Mode.CLIENT if client else None,
            network_id=network_id,
        )
        _check_redis(settings)
        return body(settings=settings, **others)

    return _with(command, _listen, _peers, _data_dir, _redis, _mdns, _client, _network, _config_file)


def keeping(body: _Body) -> _Body:
    """Give a command that looks after the blobs in a data directory its options.

    It gets ``config``, a :class:`NodeConfig` that says where they are, and ``as_json``.
    """

    @wraps(body)
    def command(*, data_dir: Path | None, config_file: Path | None, verbose: int, **others: Any) -> int | None:
        log_to_stderr(logging.WARNING, verbose=verbose)
        return body(config=_settings(config_file, data_dir=data_dir).config, **others)

    return _with(command, _data_dir, _config_file, as_json, verbose)


def identifying(body: _Body) -> _Body:
    """Give a command that needs nothing but an identity its options; it gets ``data_dir`` and ``as_json``."""

    @wraps(body)
    def command(*, data_dir: Path | None, config_file: Path | None, **others: Any) -> int | None:
        return body(data_dir=_settings(config_file, data_dir=data_dir).config.data_dir, **others)

    return _with(command, _data_dir, _config_file, as_json)


def naming_network(body: _Body) -> _Body:
    """Give a command that signs something for a network alone its ``network_id``."""

    @wraps(body)
    def command(*, network_id: str | None, config_file: Path | None, **others: Any) -> int | None:
        return body(network_id=_settings(config_file, network_id=network_id).config.dht.network_id, **others)

    return _with(command, _network, _config_file)


def dividing(body: _Body) -> _Body:
    """Give a command that looks at a store by the partition the network's ``parameters`` for it."""

    @wraps(body)
    def command(*, config_file: Path | None, **others: Any) -> int | None:
        return body(parameters=_settings(config_file).config.dht.partition, **others)

    return _with(command, _config_file)


def admitting(body: _Body) -> _Body:
    """Give a command that puts entries into a store the ``dht`` configuration, which says which of them it may take."""

    @wraps(body)
    def command(*, config_file: Path | None, **others: Any) -> int | None:
        return body(dht=_settings(config_file).config.dht, **others)

    return _with(command, _config_file)


_SETTINGS: dict[str, tuple[KeyPath, str]] = {
    "listen": (("listen",), "--listen"),
    "peers": (("peers",), "--peer"),
    "data_dir": (("data_dir",), "--data-dir"),
    "redis_url": (("redis_url",), "--redis"),
    "mdns": (("mdns",), "--mdns"),
    "mode": (("dht", "mode"), "--client"),
    "network_id": (("dht", "network_id"), "--network"),
}
"""For which setting a value is, and of which option."""


def _settings(config_file: Path | None, **values: object) -> Settings:
    from prime_dht.settings import Given, load_settings

    flags = {}
    for name, value in values.items():
        if value is not None and value != ():
            path, flag = _SETTINGS[name]
            flags[path] = Given(value, flag if value is not False else flag.replace("--", "--no-"))
    settings = load_settings(config_file, environment=os.environ, flags=flags)
    if ("peers",) not in flags:
        _check_peers(settings)
    return settings


def _check_peers(settings: Settings) -> None:
    """As :class:`PeerAddress` does, for what comes from elsewhere."""
    if not settings.config.peers:
        return
    from prime_dht.net.address_book import split_peer_address

    try:
        for address in settings.config.peers:
            split_peer_address(address)
    except ValidationError as error:
        raise ConfigError(f"{settings.origins[('peers',)]}: peers: {error}") from error


def _check_redis(settings: Settings) -> None:
    """What a node would say of its store when it opens that, with the line."""
    if settings.config.redis_url is None:
        return
    try:
        from prime_dht.storage.redis_connection import parse_address
    except ImportError:
        return  # who runs a node is told what to install
    try:
        parse_address(settings.config.redis_url)
    except StorageError as error:
        raise ConfigError(f"{settings.origins[('redis_url',)]}: redis_url: {error}") from error


def _with(command: _Body, *options: Callable[[_Body], _Body]) -> _Body:
    """Put options on a command, to be listed in this order."""
    for option in reversed(options):
        command = option(command)
    return command
