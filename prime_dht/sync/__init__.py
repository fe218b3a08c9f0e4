"""Sync: how two replicas become equal.

A *round* is one conversation between two nodes about the sectors that both store. When it is over, both have the join
of what either had: what one lacked it was sent. How that is found out for a kilobyte, or little more, is the subject of
:mod:`prime_dht.partition`; this package holds the conversation.

Pure: a round is a state machine that says what to do and is told what came of it (:mod:`prime_dht.sync.actions`). Time
and chance are arguments.

==============  ============================================================================
``messages``    what the two sides say
``actions``     what a round asks of whoever runs it, and how it ends
``round``       the round: opening, refusal, acceptance; then one side leads, one follows
``lead``        leading: questions, entries and wants, turn by turn
``finding``     finding the difference
``tasks``       what a leader has under way
``follow``      answering
``exchange``    entries on their way, in either role
``view``        what a node had when the round began
``declined``    ops that a node refused for good
``limits``      the bounds of one round
``schedule``    when, with whom, and how often
``chance``      what is needed of a source of chance
==============  ============================================================================
"""
