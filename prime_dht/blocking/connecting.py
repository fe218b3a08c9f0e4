"""From a few words to a client that has joined."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from prime_dht.blocking.client import BlockingDHT
from prime_dht.config import Mode, NodeConfig, node_config
from prime_dht.errors import ConfigError
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht.entries.validators import Validator

D = TypeVar("D", bound=BlockingDHT)

JOINING_S = 30.0


def connect(
    peers: str | Iterable[str] = (),
    *,
    data_dir: str | os.PathLike[str] | None = None,
    serve: bool = False,
    mdns: bool = False,
    network_id: str | None = None,
    config: NodeConfig | None = None,
    validators: Mapping[str, Validator] | None = None,
    timeout: float = JOINING_S,
) -> BlockingDHT:
    """Join a swarm, from code without trio: a node in a thread of its own, and its operations as plain calls.

    Without ``serve`` the node is a client: it listens nowhere, nobody relies on it, and it may come and go. That is
    what a script, a notebook or a training loop wants, with a data directory or without. With ``serve`` it also answers
    others and stores for them, and should stay; without ``peers`` and ``mdns`` it is then the first of its swarm.

    Args:
        peers: multiaddrs of nodes to join through, each ending in ``/p2p/<peer id>``; one will do. A client with a data
            directory needs none when it comes back.
        data_dir: where the identity, and all else that is to be there next time, is kept. Without it each connection
            has a new identity, so it cannot replace or delete what an earlier one has put.
        serve: be a server.
        mdns: find nodes on the local network, too.
        network_id: the name of the swarm.
        config: all other settings. Those above are added to it, or stand over it.
        validators: of namespaces other than ``/prime/``, by name.
        timeout: seconds within which it has to have joined.

    Raises:
        ConfigError: a setting is out of range, or cannot be used.
        QueryError: it has not joined: there is nobody to ask, nobody answers, or the time is over.
        StorageError: the store cannot be opened, for example because another process has it, or another client here.
        ValidationError: the timeout is no number.
        LocalProtocolError: trio runs in this thread; use :func:`prime_dht.open_node` there.
    """
    return connected(
        BlockingDHT,
        peers,
        data_dir=data_dir,
        serve=serve,
        mdns=mdns,
        network_id=network_id,
        config=config,
        validators=validators,
        timeout=timeout,
    )


def connected(
    kind: type[D],
    peers: str | Iterable[str],
    *,
    data_dir: str | os.PathLike[str] | None,
    serve: bool,
    mdns: bool,
    network_id: str | None,
    config: NodeConfig | None,
    validators: Mapping[str, Validator] | None,
    timeout: float,
) -> D:
    """As :func:`connect`, for clients that can do more."""
    config = node_config(config)
    if not (joining_s := number_of("timeout", timeout)) > 0:
        raise ConfigError(f"timeout must be a positive number of seconds, not {timeout}")
    dht_config = config.dht if network_id is None else replace(config.dht, network_id=network_id)
    if not serve:
        config, dht_config = replace(config, listen=(), announce=()), replace(dht_config, mode=Mode.CLIENT)
    elif not config.listen or dht_config.mode is Mode.CLIENT:
        raise ConfigError("a node that serves has to listen, and not to be a client")
    config = replace(
        config,
        peers=(*config.peers, *_multiaddrs(peers)),
        data_dir=config.data_dir if data_dir is None else cast(Path, data_dir),  # text, too: the config checks it
        mdns=mdns or config.mdns,
        dht=dht_config,
    )
    dht = kind(config, validators, joining_s)
    try:
        dht._open()
    except BaseException:  # Ctrl-C among them: nobody has the client yet, so nobody else could close it
        dht.close()
        raise
    return dht


def _multiaddrs(peers: object) -> tuple[str, ...]:
    """The peers that are named: one, or several."""
    named = tuple(peers) if isinstance(peers, Iterable) and not isinstance(peers, str) else (peers,)
    if not all(isinstance(peer, str) for peer in named):
        raise ConfigError(f"peers is a multiaddr, or several, as text, not {peers!r}")
    return named
