"""What an ingest costs, from its forecast and from prices that the user gives. No price is built in.

| price | unit | what it is multiplied with |
| --- | --- | --- |
| ``worker-hour`` | one worker process for an hour | workers times the time until everything is built |
| ``bigtable-node-hour`` | one Bigtable node for an hour | nodes times the time of the graph's layers |
| ``table-gb-month`` | 10^9 bytes of the table for a month | bytes of the table |
| ``storage-gb-month`` | 10^9 bytes in a bucket for a month | bytes of watershed, edge files and base |
| ``write-operations`` | 10,000 writes of objects | files, and about five objects for each populate task |
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest.batches import Stage
from sv_pipeline.ingest.estimates import Estimate
from sv_pipeline.ingest.forecast import Forecast

__all__ = ["PRICES", "ROWS_PER_NODE_SECOND", "CostLine", "bigtable_nodes", "costs_of", "parse_prices"]

PRICES = {
    "worker-hour": "workers",
    "bigtable-node-hour": "Bigtable nodes",
    "table-gb-month": "table, per month",
    "storage-gb-month": "storage, per month",
    "write-operations": "writes of objects",
}
"""The known prices, and what each pays for."""
ROWS_PER_NODE_SECOND = 10_000
"""Rows that one Bigtable node is taken to write per second. Not measured here. Google's page on performance gives up to
14,000 rows of 1 kB for SSD and 10,000 for HDD, under the best conditions; earlier editions gave 10,000 for both."""
WRITES_PER_ROW = 2.0
"""Writes of a row, about: when it is made, and when its parent is."""
OBJECTS_PER_TASK = 5


@dataclass(frozen=True)
class CostLine:
    """One line of the costs, in the currency of the prices."""

    price: str
    what: str
    units: Estimate
    """Number of units that the price is for."""
    amount: Estimate


def parse_prices(given: Iterable[str] | Mapping[str, float]) -> dict[str, float]:
    """Parse prices, given as ``NAME=AMOUNT`` or by name.

    Raises
    ------
    ConfigError
        If a name is not known, appears twice, or its amount is not a number that is 0 or more.
    """
    pairs = given.items() if isinstance(given, Mapping) else [_split(text) for text in given]
    prices: dict[str, float] = {}
    for name, amount in pairs:
        if name not in PRICES:
            raise ConfigError(f"there is no price {name!r}.", remedy=f"The prices are {', '.join(PRICES)}.")
        if name in prices:
            raise ConfigError(f"the price {name} is given twice.", remedy="Give each price once.")
        try:
            number = float(amount)
        except (TypeError, ValueError):
            number = math.nan
        if isinstance(amount, bool) or not 0 <= number < math.inf:
            raise ConfigError(f"the price {name}={amount} is not an amount.", remedy="Give a number that is 0 or more.")
        prices[name] = number
    return prices


def _split(text: str) -> tuple[str, str]:
    name, separator, amount = text.partition("=")
    if not separator:
        raise ConfigError(f"{text!r} is not a price.", remedy="Write NAME=AMOUNT, such as worker-hour=0.05.")
    return name.strip(), amount.strip()


def bigtable_nodes(found: Forecast) -> Estimate:
    """Return the number of Bigtable nodes that can write the rows as fast as the workers make them."""
    seconds = _graph_wall(found)
    rows = found.quantity("table rows") * WRITES_PER_ROW

    def nodes(n_rows: float, time: float) -> float:
        return float(max(1, math.ceil(n_rows / max(time, 1e-9) / ROWS_PER_NODE_SECOND)))

    # More rows take more time, so the ends of both intervals belong together.
    return Estimate(nodes(rows.value, seconds.value), nodes(rows.low, seconds.low), nodes(rows.high, seconds.high))


def costs_of(found: Forecast, prices: Mapping[str, float]) -> tuple[CostLine, ...]:
    """Return the costs of an ingest for the given prices, one line for each."""
    stored = found.quantity("watershed bytes") + found.quantity("edge file bytes") + found.quantity("base bytes")
    tasks = sum(stage.chunks for stage in found.stages if stage.name == "voxels")
    writes = Estimate.exact(found.workload.files + OBJECTS_PER_TASK * tasks)
    units = {
        "worker-hour": found.wall * (found.workers / 3600),
        "bigtable-node-hour": bigtable_nodes(found) * _graph_wall(found) * (1 / 3600),
        "table-gb-month": found.quantity("table bytes") * 1e-9,
        "storage-gb-month": stored * 1e-9,
        "write-operations": writes * 1e-4,
    }
    return tuple(
        CostLine(name, PRICES[name], units[name], units[name] * price) for name, price in parse_prices(prices).items()
    )


def _graph_wall(found: Forecast) -> Estimate:
    layers = {work.name for work in found.workload.stages if work.stage is Stage.GRAPH}
    walls = [stage.wall for stage in found.stages if stage.name in layers]
    return sum(walls, Estimate.exact(0))
