"""Models in a swarm: versions that are pushed, listed and pulled, and checkpoints of a training run.

===============  =======================================================================
``version``      what a version is called, and what is said of it
``listing``      which versions there are
``outgoing``     weights on their way out, checked
``pushing``      a version, from here to its replicas
``pulling``      a version, from wherever it is to a file here
``model``        what was pulled
``checkpoints``  every n-th step of a training run, in the background
===============  =======================================================================

The functions here are for trio, with a :class:`prime_dht.PrimeDHT`. For code without it they are methods of
:class:`prime_dht.LearningDHT`, which :func:`prime_dht.connect` returns. What can be listed is listed without the extra
``ml``, too.
"""
