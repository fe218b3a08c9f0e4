"""The node: :class:`PrimeDHT` on a host that exists, :func:`open_node` with one of its own.

=================  ==============================================================================
``core``           :class:`Node`, on any network: its public operations; ``life``: how it begins and ends
``dht``, ``open``  the same on a py-libp2p host; the same with a host of its own
``parts``          what a node is made of, put together: the modules below, and ``blobs``
``neighbourhood``  whom this node knows; ``strangers``: whom it does not, and how swarms become one
``lookups``        finding others; ``lookup_run``: one lookup, carried out
``server``         answers requests
``writer``         puts entries; ``batches``: many to one replica
``reader``         gets entries; ``answers``: what replicas said; ``cache``: what was read lately
``keeper``         renews entries; ``maintenance``: everything else that recurs
``replica``        the store and the partition in step; ``own_arc``, ``held``: what it is to store, and holds
``syncing``        rounds of sync, one after the other; ``rounds``: one of them, carried out
``strays``         what is stored outside the arc; ``handing_on``: given to those who should have it
``records``        plain records and providers; ``provision``, ``multihashes``: what belongs to them
``feed``           events; ``status``, ``results``: what a node tells of itself
``arguments``      what callers may write; ``clock``: the time; ``acquaintances``: since when peers are known
=================  ==============================================================================
"""

from prime_dht.node.dht import PrimeDHT
from prime_dht.node.open import open_node

__all__ = ["PrimeDHT", "open_node"]
