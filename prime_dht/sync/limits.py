"""How much one round may hold, send, ask and do, on either side.

Each bound is there because of what a peer could do without it, and is far above what honest rounds need. What exceeds
a bound on a *message* is misconduct; where an honest round meets a bound on *work*, it ends ``partial``.
"""

from __future__ import annotations

MAX_MESSAGE_BYTES = 1 << 20
"""A message on the wire, without its frame's length."""

TURN_BYTES = 768 << 10
"""What a side puts into one turn. A single entry or answer may go beyond it, and still fits into a message. An entry
larger than :data:`~prime_dht.entries.limits.MAX_ENTRY_BYTES` is never sent: it stays a difference."""

MAX_TURNS = 4096
"""Turns of one side in a round."""

MAX_LEADING_TURNS = MAX_TURNS // 2
"""After so many a leader leaves the rest for the next round; a joiner may then have 1.5 GiB. What it wants may still
come, which takes fewer turns than that."""

MAX_QUESTIONS = 512
"""Questions in one turn."""

MAX_WANTED = 16_384
"""Ids of entries that a leader may want and has not yet been sent."""

MAX_ENTRIES = 8192
"""Entries in one turn."""

MAX_ANSWER_BYTES = 512 << 10
"""What the answer to one question may take."""

IDS_PER_ANSWER = 16_384
"""Ids in one answer; a sector or cell of more is told page by page. 256 KiB."""

OPS_PER_FETCH = 4096
"""Ops asked for of the store at a time, and ids looked up."""

MAX_SECTOR_OPS = 1 << 17
"""Ops of one sector of which symbols are made on demand: 4 MiB of ids. Of larger sectors the ids are told instead."""

MAX_MADE = 1 << 18
"""Ops that are read in all to answer one turn's questions."""

MAX_READINGS = 8
"""How often in a round, on average, each op may be read for answers. An honest leader has symbols of a sector made four
times at most, a salted code included, and asks for its ids once."""

MAX_WORK = 1 << 13
"""What the answers to one turn's questions may cost beside the reading of ops, in steps over arrays of sectors, of some
20 µs each. What would cost more is left for another turn. The symbols of each sector alone, the most that an honest
leader asks for at once, take a step for each; of the cells of each sector alone it may have to ask for some again."""

WORK_UNTIL_REST = 1 << 8
"""After so much work others come to their turn."""

MAX_TELLINGS = 8
"""How often in a round, on average, each cell may be told, and each sector's symbols. An honest leader asks for the
symbols of a sector in twelve turns at most (:data:`MAX_FLIGHTS`), and once for its cells and the ids in each of them.
That is a fourth of this."""

SYMBOLS_AS_CELLS = 16
"""With its symbols a sector counts as so many cells more."""

MAX_PENDING_IDS = 1 << 15
"""Ids found to differ that wait to be sent or wanted; while there are more, no questions are asked."""

MAX_CHANGES = 1 << 14
"""Ops that come at this node during a round and are remembered, and such that go. If more come, nobody is called a
liar; if more go, the other side takes nothing for equal."""

MAX_FLIGHTS = 12
"""Turns with questions in which sketches are tried. What is undecoded then is settled by cells and ids."""

MAX_POSTPONED_BYTES = 4 << 20
"""Of entries that a side refuses and that will come again in the next round: its store is full, they are dated ahead of
its clock, or it can remember no more of those that it declined. Were all that a full store lacks sent to it in every
round, the network would do nothing else."""

MAX_NAMESAKES = 1024
"""Entries in a round that come because their ids begin like others that were wanted."""
