"""prime_dht: a libp2p-native peer node that gives decentralised machine learning a serverless place for its data.

    with connect(["/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"]) as dht:
        receipt = dht.put("key", b"a value of any size")
        version = dht.push_model("digits", network.state_dict())
        model = dht.pull_model("digits")

:func:`connect` is for ordinary code. In trio the same is ``async with open_node(NodeConfig(peers=(…,))) as dht:``, with
``await`` before operations; and :class:`PrimeDHT` mounts on a py-libp2p host that runs already. What any of them raises
on purpose is a :class:`PrimeDHTError`.

The names below are imported when they are first used, so that a program that only looks at its arguments starts fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from prime_dht.net.hardening.name_servers import do_without_name_servers

if TYPE_CHECKING:
    from prime_dht.blobs.cid import Cid
    from prime_dht.blocking import BlockingDHT
    from prime_dht.config import DhtConfig, Mode, NodeConfig
    from prime_dht.entries.limits import Limits
    from prime_dht.errors import (
        BlobError,
        ConfigError,
        LocalProtocolError,
        PrimeDHTError,
        QueryError,
        RemoteProtocolError,
        StorageError,
        ValidationError,
    )
    from prime_dht.ml.client import LearningDHT, connect
    from prime_dht.ml.models.checkpoints import Checkpoints
    from prime_dht.ml.models.listing import UnknownModelError
    from prime_dht.ml.models.model import Model
    from prime_dht.ml.models.version import ModelVersion
    from prime_dht.node import PrimeDHT, open_node
    from prime_dht.node.blobs.progress import BlobProgress
    from prime_dht.node.results import Found, FoundPage, Health, PeerStatus, Provider, PutReceipt, RecordReceipt, Stats

__all__ = [
    "BlobError",
    "BlobProgress",
    "BlockingDHT",
    "Checkpoints",
    "Cid",
    "ConfigError",
    "DhtConfig",
    "Found",
    "FoundPage",
    "Health",
    "LearningDHT",
    "Limits",
    "LocalProtocolError",
    "Mode",
    "Model",
    "ModelVersion",
    "NodeConfig",
    "PeerStatus",
    "PrimeDHT",
    "PrimeDHTError",
    "Provider",
    "PutReceipt",
    "QueryError",
    "RecordReceipt",
    "RemoteProtocolError",
    "Stats",
    "StorageError",
    "UnknownModelError",
    "ValidationError",
    "connect",
    "open_node",
]

_MODULE_OF = {
    "BlockingDHT": "prime_dht.blocking",
    **dict.fromkeys(("LearningDHT", "connect"), "prime_dht.ml.client"),
    "BlobProgress": "prime_dht.node.blobs.progress",
    "Cid": "prime_dht.blobs.cid",
    **dict.fromkeys(("DhtConfig", "Mode", "NodeConfig"), "prime_dht.config"),
    **dict.fromkeys(("PrimeDHT", "open_node"), "prime_dht.node"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "prime_dht.errors"),
    "Checkpoints": "prime_dht.ml.models.checkpoints",
    "Limits": "prime_dht.entries.limits",
    "Model": "prime_dht.ml.models.model",
    "ModelVersion": "prime_dht.ml.models.version",
    "UnknownModelError": "prime_dht.ml.models.listing",
}

do_without_name_servers()  # before any part of prime_dht imports py-libp2p


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF.get(name, "prime_dht.node.results")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
