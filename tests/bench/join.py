"""How long a swarm takes until all know all, and what an idle node costs in memory."""

from __future__ import annotations

from prime_dht import DhtConfig

from .swarm import open_swarm, resident_bytes
from .tables import Table


async def measure_join(*, quick: bool) -> list[Table]:
    """The table of this suite. It comes first in a run: memory that was used and freed before would hide growth."""
    size = 4 if quick else 16
    async with open_swarm(size, DhtConfig()) as swarm:
        row = {
            "nodes": size,
            "join_s": swarm.join_s,
            "MB_per_further_node": swarm.node_bytes / 1e6,
            "MB_in_all": resident_bytes() / 1e6,
        }
    title = (
        "Joining at once through one bootstrap peer, until all know all; resident memory, a full mesh of connections"
    )
    return [Table(name="join", title=title, rows=[row])]
