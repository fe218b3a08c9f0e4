"""Blobs without I/O: values too large for an entry, cut into blocks, named by their hashes, brought together again.

Pure: nothing here opens a file or a socket, reads a clock or draws a random number.

===============  =======================================================================
``cid``          the name of a block
``chunking``     where content is cut: every 1 MiB, or
``tensors``      where the tensors of a safetensors file begin
``unixfs``       the blocks that list others: one encoding for each, strictly read
``build``        from content to blocks and the root
``walk``         from the root to the leaves, in order, within bounds
``plan``         which block from whom, and what to do when that fails
``under_way``    the blocks that a plan has begun with, and how far each is
``provider``     what a plan knows of one provider, and how much it may be asked for
``breadth``      how many of its providers a plan asks at a time
``choice``       and of which of these a block
``searches``     when a plan searches for more of them
``actions``      what a plan tells its driver to do
===============  =======================================================================
"""
