"""Aggregation: many members' tensors as one, some of whom may be bad. Pure, and the same to the bit everywhere.

- ``contribution``: what members send, and which of it can be aggregated; ``aggregate``: one round's aggregate;
- ``stack``: arithmetic that gives the same bits on every machine; ``rule``: what rules have in common, and the mean;
- ``coordinatewise``, ``krum``, ``centred``: the robust rules.

================== ============================ ===================== ==========================================
rule               source                       stands                cost for n members of d elements
================== ============================ ===================== ==========================================
FederatedAverage   McMahan et al. 2017          0                     O(n d)
CoordinateMedian   Yin et al. 2018              bad < n / 2           O(n log² n d)
TrimmedMean        Yin et al. 2018              bad < n / 2           O(n log² n d)
Krum, MultiKrum    Blanchard et al. 2017        bad ≤ (n - 3) / 2     O(n² d)
GeometricMedian    Pillutla et al. 2019         bad < n / 2           O(n d) for a step, of which there are some 10
CenteredClipping   Karimireddy et al. 2021      bad < n / 2           O(n d) for a step, by default 1
================== ============================ ===================== ==========================================
"""

from prime_dht.ml.aggregation.aggregate import Aggregate, aggregate
from prime_dht.ml.aggregation.centred import CenteredClipping, GeometricMedian
from prime_dht.ml.aggregation.contribution import Contribution, Screened, screen
from prime_dht.ml.aggregation.coordinatewise import CoordinateMedian, TrimmedMean
from prime_dht.ml.aggregation.krum import Krum, MultiKrum
from prime_dht.ml.aggregation.rule import FederatedAverage, Rule

__all__ = [
    "Aggregate",
    "CenteredClipping",
    "Contribution",
    "CoordinateMedian",
    "FederatedAverage",
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "Rule",
    "Screened",
    "TrimmedMean",
    "aggregate",
    "screen",
]
