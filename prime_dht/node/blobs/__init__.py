"""Blobs in a node: values of any size, on the replicas of the entries that refer to them.

===============  =======================================================================
``blobs``        what a node's owner can do with them
``putting``      from a value to blocks, and until replicas hold them
``left``         what puts keep here, also when nobody waits for them
``fetch``        a fetch plan, carried out
``destination``  where a fetch brings blocks: the block store,
``file``         a file, or
``window``       a reader that takes them in order
``claims``       which blobs this node keeps for the entries that it stores
``accounts``     how many bytes of blobs each publisher is charged
``keeping``      fetching those, announcing them, letting go of them
``pinning``      having one here because its user wants it
``turns``        whose blob is fetched next
``holding``      asking others whether they hold one
``named``        what a caller names one with
``progress``     how far a blob is
===============  =======================================================================
"""
