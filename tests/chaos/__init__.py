"""Chaos: a swarm of real node processes on a bad network, killed and cut in two; ``make chaos``.

Each node is a process of its own with its SQLite store in a data directory of its own, as ``prime-dht run`` has it
(:mod:`tests.chaos.node`). Writers put through all of them without end. Meanwhile, as a plan drawn from the seed says
(:mod:`tests.chaos.plan`), nodes die by SIGKILL and come back with their stores, and the network is cut into two halves
that hear nothing of each other, and healed. When that is over, no more is written, and each node knows its neighbours
again, this must come true (:mod:`tests.chaos.verdict`):

- **Replica sets agree** after at most five rounds of sync that each node begins with whom its schedule says: in every
  slot, at each of the ``r`` nodes closest to the key, stands the newest entry that any node has.
- **Nothing is lost.** What was acknowledged with full replication (by ``r`` replicas) stands in its slot, or what is
  newer.
- **It is readable**: nodes drawn at random find it.
- **Nobody fell**: no node ended that was not killed, or kept its owner waiting for ever.

**Network.** Each node has a network namespace of its own, in which there is nothing but a TUN device; what the node
sends comes out at a switch in user space (:mod:`tests.chaos.switch`), which delays every IP packet by 50 ms, loses 2%
of them, and drops those from one half to the other. That needs no ``tc netem``, which many kernels lack, and neither
bridge nor firewall; namespaces without a name are gone with their processes, so that there is nothing to clean up. All
processes end when their standard input does, also where the run is killed. Where the system permits none of this, nodes
run on loopback without delay and loss, refuse connections with the other half, and the run says so.

The seed decides what is done to whom and when, which packets are lost in what order, who writes what where, and who
reads. The machine decides the rest: times are real, so two runs of one seed are alike, not equal. For histories that
repeat to the byte there is ``make simulate``.
"""
