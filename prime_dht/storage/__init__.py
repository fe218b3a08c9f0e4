"""Storage: what a node keeps.

The interface is ``base``; the backends are ``memory``, ``sqlite`` and ``redis``. How much one may hold, and what goes
when it is full, is ``capacity``; the decision for one entry, shared by backends, ``joining``. ``dump`` carries what a
store holds to another, and ``offline`` looks after one whose node does not run.
"""
