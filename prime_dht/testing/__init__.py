"""For tests and experiments; nothing that runs in a node imports it."""
