"""The same operations on the software that people use today: ``python -m tests.bench.peers``, or ``make bench-peers``.

Each peer gets its own virtual environment, ``.venv-peers/<name>``, made from the package index when it is missing; one
that cannot be installed or does not work is left out, with the reason in the table. Its module runs in that environment
and imports nothing but the standard library, :mod:`tests.bench.peers.load` and the peer. Our own nodes are measured
before and after the peers, in processes of their own as well.

What all of them do: 16 nodes on loopback, each value of 1 KiB random bytes under a new key; puts from random nodes,
gets from random nodes that do not hold the value where the peer lets one know; one and 32 in flight. What they do not
have in common is how much a put does: ours signs, verifies and stores 3 copies over authenticated, encrypted
connections and knows which replicas have it; kademlia and OpenDHT send plain UDP to whoever is there.
"""
