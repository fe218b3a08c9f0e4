"""How two nodes find out in what their data differ: the disc-and-ring partition.

Think of a graph of all ops, one point each: up goes the op's *location*, to the right its ``created_at``. The partition
cuts both axes. Locations are cut into *sectors* of equal size. Time is cut into *slices*: long ago, full slices of five
days each; towards now, partial slices that halve and halve again, down to a quarter of an hour. A *cell* is a sector in
a slice. Of each cell a node keeps one *combined hash*: the XOR of the op ids in it, and how many they are. That is all
that two nodes need to compare; the ops themselves stay in the store.

Bend the graph so that the ends of the location axis meet, with the beginning of time in the middle, and the names
explain themselves: the full slices are a *disc*, each partial slice is a *ring* around it, and what is newer than the
last ring is the *tail*.

::

      sector  full slices              partial slices             tail
      511     |........|........|....  |....|....|..|.|   |   | |  .
       ...    |........|........|....  |....|....|..|.|   |   | |  .
      0       |........|........|....  |....|....|..|.|   |   | |  .
              1970    the disc         the rings                  now

Why this shape: what differs between two replicas is nearly always recent, since each write reaches some replicas first.
Recent time is cut finely, so a difference there is found in a small cell; history is cut coarsely, so that a year of it
is 68 slices. With sectors it is the same: a node stores an *arc* of the circle, and what lies outside the arc that two
nodes have in common plays no part in their comparison.

Two nodes first exchange *top hashes*, combinations of combined hashes over all their common sectors: one for the disc,
one for each ring and one for the tail, half a kilobyte in all. Equal top hashes: equal data, and the round is over.
Otherwise they drill down, disc before rings: which sectors differ, then which cells, then the ids of the ops in these.

Few differences are found faster by *sketches*, which a node keeps for each sector as well: from those of two sets, the
ids in which the sets differ can be read off, wherever they lie, at little more than their own size. The drill-down is
for what sketches cannot decode, and for differences so many that it costs less.

Pure: nothing here opens a file or socket, reads a clock or draws a random number.

==================  =============================================================================
``parameters``      unit, factor and sector bits: what two nodes must agree on
``location``        where on the circle an op lies, and in which sector
``arcs``            sets of sectors, and their encoding
``slices``          the slices at any instant, and the steps from one layout to a later one
``combined``        combined hashes
``cells``           combined hashes of all cells, as columns of numpy arrays
``snapshot``        what two nodes send each other to compare
``compare``         what a comparison finds, and what to do next
``offer``           the ops to offer from cells that differ, page by page
``partition``       the whole: cells and sketches, kept in step with a store
``symbols``         coded symbols: which ops are in which; the definition that nodes share
``planes``          coded symbols in memory
``sketch``          sketches, and those kept of every sector
``estimate``        how many ids differ, guessed from a sketch too short to decode
``decode``          the ids that differ, read from a sketch, and what proves them
``plan``            what to ask next when a sketch was too short
``picture``         a partition in words and as text
``drawing``         a partition as SVG: the graph, and the circle
==================  =============================================================================

The model is that of the crate kitsune2_dht. What differs on purpose is said in each module: the layout depends on
nothing but the time; cells have counts; the tail is compared too; nodes a tick apart can compare; offers are paged.
"""
