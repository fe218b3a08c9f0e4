"""The node: :class:`PrimeDHT` on a host that exists, :func:`open_node` with one of its own.

=================  ==============================================================================
``core``           :class:`Node`, on any network: its public operations, and its life
``dht``, ``open``  the same on a py-libp2p host; the same with a host of its own
``neighbourhood``  whom this node knows; ``lookups``: finding others
``server``         answers requests
``writer``         puts entries; ``reader`` gets them; ``cache``: what was read lately
``keeper``         renews entries; ``maintenance``: everything else that recurs
``records``        plain records and providers; ``provision``, ``multihashes``: what belongs to them
``feed``           events; ``status``, ``results``: what a node tells of itself
=================  ==============================================================================
"""

from prime_dht.node.dht import PrimeDHT
from prime_dht.node.open import open_node

__all__ = ["PrimeDHT", "open_node"]
