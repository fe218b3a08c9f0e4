"""Machine learning on the swarm: tensors, how they travel, how they are aggregated, and how members agree on it.

What needs neither node nor clock lies in packages of its own, pure, to be used with or without a swarm:

- ``tensors``: named arrays and their specs; ``weights``: safetensors bytes and files;
- ``codecs``: tensors as few bytes; ``aggregation``: many members' gradients as one;
- ``agreement``: which gradients, and which aggregate.

With a swarm, for code without trio:

- ``client``: what :func:`prime_dht.connect` returns;
- ``models``: pushed, pulled and listed in versions, and checkpoints;
- ``gradients``: published and collected, round by round;
- ``rounds``: the members of a group agree, round by round, on one aggregate;
- ``service``: for orchestrators, who start, stop and watch; ``watching``: what it looks out for.

It needs the extra ``ml``, and says so without it (``extra``): ``pip install prime-dht[ml]``.
"""
