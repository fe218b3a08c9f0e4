"""Kademlia without I/O: where a key lives, who is known, whom to ask next, who stores it.

Pure: nothing here opens a socket, reads a clock or draws a random number. Machines take ``now_s``, seconds of any
monotonic clock, and a seeded ``rng``, and return action values; a driver carries them out.

===================  ================================================================
``keyspace``         the metric, prefixes, the ranges of the k-buckets
``contact``          what is known of a peer; the subnets it lies in
``routing_table``    which contacts to keep
``lookup``           whom to ask, until the closest to a target have answered
``hearsay``          whose word about other peers counts for little
``replicas``         who stores a key, how many must acknowledge, the target arc
===================  ================================================================
"""
