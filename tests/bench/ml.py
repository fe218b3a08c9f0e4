"""Machine learning: models between processes, a round of gradients, rules of aggregation, codecs."""

from __future__ import annotations

import trio

from .ml_arithmetic import measure_aggregation, measure_codecs
from .ml_transfer import measure_models, measure_round
from .tables import Table


async def measure_ml(*, quick: bool) -> list[Table]:
    """The tables of this suite."""
    measures = (measure_models, measure_round, measure_aggregation, measure_codecs)
    return [await trio.to_thread.run_sync(measure, quick) for measure in measures]
