"""Gradients: what members who train together exchange, round by round.

    gradients = Gradients(dht)
    gradients.publish(number, my_gradient, {"loss": loss}, weight=len(batch), codec="int8")
    collected = gradients.collect(number, members=members)
    mean = aggregate(collected.contributions(), spec_of(my_gradient), FederatedAverage(), bad=0)

:func:`prime_dht.connect` returns what has both as methods. Of each round every member's gradient lies under one key, so
one lookup finds all. What collecting came to says who is missing, and whose gradient cannot be used, and why.

- ``announcement``: what an entry says of its gradient; ``gradient``: what is collected. Both pure, as is
- ``gathering``: what counts, what is to be brought next, when it is over; ``bringing``: that, done in a swarm;
- ``gradients``: :class:`Gradients`, for code without trio.
"""

from prime_dht.ml.gradients.announcement import Announcement, gradient_key, group_of
from prime_dht.ml.gradients.gradient import Collected, Gradient
from prime_dht.ml.gradients.gradients import Gradients

__all__ = ["Announcement", "Collected", "Gradient", "Gradients", "gradient_key", "group_of"]
