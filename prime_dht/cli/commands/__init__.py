"""The subcommands of ``prime-dht``: each module here holds one, as ``command``; ``_`` in its name is typed as ``-``."""
