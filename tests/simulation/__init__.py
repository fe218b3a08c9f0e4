"""Simulations of whole swarms under faults: a few in the tests, many with ``make simulate``."""
