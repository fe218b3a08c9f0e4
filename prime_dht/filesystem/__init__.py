"""The swarm as a file system: ``prime://`` for fsspec, and so for pandas, zarr, PyTorch's checkpoints and many others.

    import fsspec

    with fsspec.open("prime://runs/7/notes.txt", "w", peers="/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…") as file:
        file.write("loss went down")

It comes with ``pip install 'prime-dht[fsspec]'``, which registers the protocol. What a file is here:

- **One entry**, and with it one version: whole or not there, and replaced as a whole, even if its writer is killed. Who
  reads goes on reading what was opened; but of a blob that was replaced or removed replicas soon let go, a minute or
  two later, and then the rest is an :class:`OSError`.
- **Written by one peer.** Others cannot change or remove it (:class:`PermissionError`). Under a name that anybody may
  write they can put something newer, which is then what is seen; but ``trusted`` leaves others' entries unseen, under
  ``prime://own/<peer id>/`` only that peer writes, and under ``prime://group/<root>/`` only members with a capability.
- **It ends**, after ``ttl`` seconds (86,400 in the node's configuration by default), unless it is renewed:
  :meth:`PrimeFileSystem.renew`.
- What is written passes through a temporary file and the node's block store. Without a ``data_dir`` that is in memory,
  and a file can have 256 MiB at most.
- A directory holds as many names as a key has slots, 4,096 by default, those lately removed included, and up to eight
  for each peer that writes blobs there. To list it brings along what its small files hold, up to 64 KiB each.

=================  ===========================================================
``filesystem``     :class:`PrimeFileSystem`: what fsspec asks for
``copies``         copying and moving within the swarm
``targets``        which path goes where then
``file``           an open file
``tree``           files and directories as entries
``changes``        what this node puts, one after the other
``details``        what an entry says of a file
``paths``          which key and subkey a path has
``errors``         the swarm's errors as those of a file system
``together``       several operations as one call
``connections``    one node for all file systems of a swarm
=================  ===========================================================
"""

from prime_dht.filesystem.filesystem import PrimeFileSystem

__all__ = ["PrimeFileSystem"]
