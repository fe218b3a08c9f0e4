"""How fast it is, and how much it needs: ``python -m tests.bench``, or ``make bench``.

Each suite is one module with a function that measures and returns tables. What is compared is measured in the same run,
in rounds that take turns, because the speed of a shared machine drifts by a factor of two within minutes: read ratios.
Seeds are fixed. Times are reported and never asserted; the number of requests is exact, and a test asserts it.

The modules import each other relatively, which needs this package: nothing puts the repository's root on the path.
"""
