"""prime_dht: a libp2p-native Kademlia node for decentralised machine learning."""
