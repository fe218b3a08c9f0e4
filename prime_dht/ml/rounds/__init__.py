"""Rounds: the members of a group agree, round after round, on one aggregate of their gradients.

    member = RoundMember(dht, members=members, rule=TrimmedMean(), bad=1, spec=spec_of(gradient), capability=capability)
    for number in range(rounds):
        committed = member.run(number, my_gradient(model), weight=len(batch))
        model.step(committed.aggregate.tensors)

All good members get the same aggregate, to the bit, while the bad ones, who crash, lag, lie or say different things to
different others, have less than a third of all votes. Each round goes

1. *publish*: each member puts its terms, by which all must aggregate alike, and its gradient;
2. *collect*: each takes the gradients of all that come in time; these differ from member to member;
3. *agree*: in turn members propose which gradients to aggregate, and to what; each recomputes that before it votes, and
   more than two thirds must vote for it (:mod:`~prime_dht.ml.agreement`);
4. *commit*: the aggregate is put, and the outcome with the votes that prove it, for those who lag and for anyone who
   wants to check it later (:func:`verify_commit`).

Statements, terms and outcomes lie under one key of the group, ``round:<number>``; to somebody without a capability the
replicas refuse it. A member finds its way back after a crash from what it put and from its :mod:`~.journal`.

**What it takes.** To be safe, it takes nothing but fewer than a third bad. To go on, members must reach the swarm, and
what a good member proposes must be there for others to fetch, as what was put is, on its replicas. A bad member can
have its own gradient fetched by some and not by others; outcomes that name it then fail, until somebody proposes who
has it not.

A key has room for 4,096 slots, of which a view takes two for each member, and terms and outcome two more: with 100
members there is room for some 19 views, with 500 for three. A bad member that fills them keeps a round from going on.

**A number is used once.** Whoever runs a round that is over gets what it came to then, as long as that lives, whatever
gradient it brings now. So another training run takes another group, or goes on counting.

===============  =====================================================================================
``terms``        what all members must have in common                                             pure
``posts``        what lies under a round's key                                                    pure
``deliberation`` one member's part, from reads to what is to be said                              pure
``examiner``     whether an outcome is valid, by aggregating
``journal``      what a member is about to say, on its disk
``board``        the round's key in a swarm
``member``       :class:`RoundMember`, who does all that
``verification`` what anyone can check offline
===============  =====================================================================================
"""

from prime_dht.ml.rounds.member import TIMEOUTS, Committed, RoundMember
from prime_dht.ml.rounds.terms import Terms
from prime_dht.ml.rounds.verification import members_of, verify_commit

__all__ = ["TIMEOUTS", "Committed", "RoundMember", "Terms", "members_of", "verify_commit"]
