"""A measured sample: some chunks are really ingested in a scratch place, and what they took is extrapolated.

For each chunk of the sample the stages run as in an ingest, one chunk at a time:

| stage | what is done | what is measured |
| --- | --- | --- |
| labels | the chunk is labelled; so are the parts of neighbours that touch it | time, bytes of the volume |
| edges | the edge and component files of the chunk | time, bytes of the files |
| layer 2 | its nodes, in a scratch table | time, supervoxels, edges, nodes, bytes of the rows |
| voxels | its voxels, at the mips that divide a chunk, in a scratch base | time, bytes |

One more chunk goes first and is not counted, so that connections are open and modules are loaded. At the end, all
chunks of layer 2 are written once more in one call. The difference to the single calls is the cost of a call, which an
ingest pays once per batch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sv_pipeline.config import DatasetConfig
from sv_pipeline.errors import ConfigError
from sv_pipeline.failpoints import reach
from sv_pipeline.ingest.estimates import Estimate, extrapolate, share_unlike, spread_chunks
from sv_pipeline.ingest.forecast import SAMPLE, Quantity, SampleNote, default_content
from sv_pipeline.ingest.sampler import Sampler
from sv_pipeline.ingest.scratch import scratch_dataset
from sv_pipeline.ingest.workload import MipWork, Workload
from sv_pipeline.progress import Progress

__all__ = ["Sample", "take_sample"]

BASE_QUANTITIES = ("base bytes", "seconds: voxels")


@dataclass(frozen=True)
class Sample:
    """What the chunks of a sample took, extrapolated to the volume."""

    note: SampleNote
    content: dict[str, Quantity]
    """Totals of the whole volume, by the names of `forecast.default_content`."""
    notes: tuple[str, ...] = ()


def take_sample(
    config: DatasetConfig,
    home: str,
    workload: Workload,
    count: int,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sample:
    """Ingest some chunks in a scratch place, remove it, and extrapolate to the whole volume.

    Parameters
    ----------
    config
        Configuration of the graph; it need not be registered.
    home
        Home folder, which holds the record of the scratch place.
    workload
        The size of the whole ingest.
    count
        Number of chunks.
    seed
        Seed of the choice of chunks.
    progress
        Receives the progress.

    Raises
    ------
    ConfigError
        If the sample is larger than the volume, or too small for an interval.
    """
    if count > workload.chunks:
        raise ConfigError(
            f"a sample of {count} chunks is larger than the volume, which has {workload.chunks}.",
            remedy="Choose a smaller --sample.",
        )
    if count < min(2, workload.chunks):
        raise ConfigError("a sample of one chunk gives no interval.", remedy="Choose a --sample of 2 or more chunks.")
    progress, started = progress or Progress(), time.monotonic()
    with scratch_dataset(config, home, makes_watershed=workload.makes_watershed) as (dataset, folder):
        sampler = Sampler(dataset, folder, workload)
        if workload.makes_watershed:
            dataset.forget()
        n_run = min(count + 1, workload.chunks)
        progress.begin("sample", n_run)
        chosen = spread_chunks(workload.grid, n_run, seed)
        sampler.prepare(chosen)
        for coordinate in chosen:
            sampler.measure(coordinate)
            reach("sample_chunk_done")
            progress.advance(1)
        rows = list(sampler.measured.values())[n_run - count :]
        together = sampler.measure_together(chosen[n_run - count :])
        if together is not None:
            _take_out_calls(rows, together, workload.chunks_per_batch)
        content, notes = _extrapolated(rows, workload, sampler)
        progress.end()
    note = SampleNote(
        chunks=count,
        of=workload.chunks,
        seed=seed,
        seconds=round(time.monotonic() - started, 1),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Sample(note, content, notes)


def _take_out_calls(rows: list[dict[str, float]], together: float, per_batch: int) -> None:
    """Subtract from the times of single calls what a call costs beyond its share in a batch."""
    name, n = "seconds: layer 2", len(rows)
    if n < 2:
        return
    per_call = max(0.0, (sum(row[name] for row in rows) - together) / (n - 1))
    for row in rows:
        row[name] = max(row[name] - per_call * (1 - 1 / per_batch), row[name] / per_batch)


def _extrapolated(
    rows: list[dict[str, float]], workload: Workload, sampler: Sampler
) -> tuple[dict[str, Quantity], tuple[str, ...]]:
    content = {name: Quantity(_total(name, rows, workload), SAMPLE) for name in rows[0] if name != "voxels"}
    notes: list[str] = []
    if "supervoxels" in content and not any(row["supervoxels"] for row in rows) and len(rows) < workload.chunks:
        notes.append(
            f"No chunk of the sample holds a supervoxel, so the volume is mostly empty, or its content was missed. The "
            f"upper bounds take at most {share_unlike(len(rows), workload.chunks):.0%} of the chunks to be as full as "
            f"the default figures allow. Take a larger sample, or another --seed."
        )
    if workload.mips and sampler.referred != tuple(m.mip for m in workload.mips[: sampler.n_mips] if m.referred):
        notes.append(
            "The scratch base could not refer to the watershed as the real base will, because its tasks are single "
            "chunks. Time and bytes of the base are therefore those of the default figures."
        )
        for name in BASE_QUANTITIES:
            content.pop(name, None)
    elif workload.mips:
        factor = _factor_of_mips(workload.mips, sampler.n_mips)
        if factor > 1:
            for name in BASE_QUANTITIES:
                content[name] = Quantity(content[name].estimate * factor, SAMPLE)
    return content, tuple(notes)


def _total(name: str, rows: list[dict[str, float]], workload: Workload) -> Estimate:
    """Extrapolate a quantity. If all chunks of the sample are equal, the default figures bound the others."""
    voxels = [row["voxels"] for row in rows]
    found = extrapolate([row[name] for row in rows], voxels, workload.chunks, workload.voxels)
    n, usual = len(rows), default_content(workload)
    if n < workload.chunks and name in usual and math.isclose(found.low, found.high, rel_tol=1e-9):
        more = usual[name].estimate.high * share_unlike(n, workload.chunks)
        return replace(found, high=found.high + more)
    return found


def _factor_of_mips(mips: tuple[MipWork, ...], sampled: int) -> float:
    """Ratio of the voxels that are written at all mips to those of the sampled mips."""
    written = [0 if mip.referred else mip.voxels for mip in mips]
    return sum(written) / sum(written[:sampled]) if sum(written[:sampled]) else 1.0
