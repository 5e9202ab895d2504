"""Work that tests do in processes of their own: build chunks, and be killed while at it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from sv_pipeline.config import DatasetConfig
from sv_pipeline.graph.chunked_graph import open_chunked_graph
from sv_pipeline.table.interface import Table
from sv_pipeline_tests.graph.worlds import build


def build_layer(table: Table, config: DatasetConfig, layer: int, order: int, batch: int) -> None:
    """Build a layer in batches, in an order of one's own."""
    graph = open_chunked_graph(table)
    coordinates = np.random.default_rng(order).permutation(graph.grid.coordinates(layer))
    for first in range(0, len(coordinates), batch):
        build(graph, config, layer, coordinates[first : first + batch])


def build_and_die(table: Table, config: DatasetConfig, layer: int, write: str, number: int, part: float) -> None:
    """Build a layer, and be killed at the n-th write of a kind (from 0), when ``part`` of it is done."""
    graph = open_chunked_graph(table)
    calls = 0
    original: Callable[..., Any] = getattr(table, write)

    def dying(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= number:
            return original(*arguments, **options)
        if write == "mutate":
            mutations = list(arguments[0])
            original(islice(mutations, int(len(mutations) * part)))
        elif part >= 1:
            original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    setattr(table, write, dying)
    build(graph, config, layer, graph.grid.coordinates(layer))
