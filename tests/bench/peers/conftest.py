"""What runs in other environments cannot be imported in this one, not even to look for doctests."""

collect_ignore = ["kademlia_udp.py", "opendht_udp.py", "hivemind_dht.py"]
