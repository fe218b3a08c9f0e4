"""Guards against defects of py-libp2p 0.8.1: one module for each guard, so that each can be deleted on its own.

A module says which defect it is for, why the guard works, and when it can go. Its test shows the failure on a stock
host and the same scenario passing on a guarded one. Guards wrap methods of one host's objects: other hosts in the
process keep their behaviour, except where a module says otherwise.

``P`` numbers are known defects, ``A`` numbers were found by reading the path from TCP accept to identify.

====  ==========================================================================  ==============================
P1    an exception in a stream handler, or in negotiation, ends the host           :mod:`.stream_guard`
P2    a write cancelled half-way breaks the connection                             ``net/noise.py``
P3    a default host accepts plaintext and secio                                   ``net/noise.py``, ``net/host.py``
P4    every dial takes at least 250 ms                                             :mod:`.outbound`
P5    one failed dial blocks a peer for 60 s; few of its addresses are tried       :mod:`.outbound`
P6    identifies by the hundred time out together, with an ERROR each              :mod:`.identify`, :mod:`.log_noise`
P7    the 257th stream to a peer waits for ever                                    :mod:`.stream_slots`
P8    a handler that returns without closing leaves the peer reading for ever      :mod:`.stream_guard`
P9    addresses are forgotten after 120 s                                          ``net/address_book.py``
P10   a writer whose window is closed polls, and fails after 5 s                   ``net/yamux/``
P11   reads give up after 100 pieces; varints are read byte by byte                ``net/streams.py``
P12   limits are implicit, and whoever is in the peerstore gets dialled            :mod:`.limits`, ``auto_connector``
P13   dialling oneself succeeds; TLS logs a WARNING per connection                 :mod:`.outbound`, :mod:`.log_noise`
A1    an inbound connection keeps its slot after it has closed                     :mod:`.inbound`
A2    connections that say nothing take the slots of those that would talk         :mod:`.inbound`
A3    a multistream line may be announced as long as 2**64 bytes, before any auth  :mod:`.negotiation`
A4    a closed stream whose peer does not close its end is kept for ever           :mod:`.stream_guard`
A5    the outbound security handshake has no deadline                              :mod:`.outbound`
A6    a cancelled dial leaks a resource manager slot                               :mod:`.limits`
A7    strangers' streams can use up what this node's own calls need                :mod:`.limits`, :mod:`.stream_guard`
A8    what a peer says of itself may have 1 MiB and is kept                        :mod:`.identify`
A9    after 1,000 peers the peerstore evicts the host's own key                    :mod:`.peer_state`
A10   two nodes share a port without noticing; a failed listen goes unreported     :mod:`.listening`
A11   listeners stay open when a host with a live connection stops                 ``net/host.py``
A12   nobody knows who is at the other end of an IPv6 connection                   :mod:`.remote_address`
A13   a connection whose path has died stays open for a quarter of an hour         :mod:`.dead_paths`
A14   a connection that closes while it is registered is kept as an open one       :mod:`.registration`
A15   without a name server in ``/etc/resolv.conf`` nothing of it can be imported  :mod:`.name_servers`
====  ==========================================================================  ==============================
"""
