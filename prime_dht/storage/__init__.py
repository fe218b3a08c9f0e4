"""Storage: what a node keeps. The interface is ``base``; the backends are ``memory`` and ``sqlite``."""
