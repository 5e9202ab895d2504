"""How well and how fast a mask of fused objects is cut, and how soon further clicks make it right.

    python -m benchmarks.voxel_cut [--data ../shared/data] [--cases 24] [--clicks 6] [--held-out] [--kinds fused ...]
    python -m benchmarks.voxel_cut --seeds [--cases 16]

The first form prints curves: after the first cut (one seed a side), a simulated user puts one more seed of the right
side into the deepest voxel of the largest wrong piece, again and again. Of each number of clicks: balanced accuracy
(mean, median, 10th percentile), and the share of cases that the last click made worse by more than 0.005. The second
form compares cuts with 1-3 seeds a side, without corrections, with the *distance race*: each voxel to the side whose
seeds are nearer inside the object.

``voxel_cut_cases.py`` describes the cases. Use the held-out ones to report, not to choose.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cc3d
import dijkstra3d
import numpy as np

from benchmarks.voxel_cut_cases import DATA, KINDS, Case, Resolution, balanced_accuracy, cases_of, next_click
from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.errors import InputError

Method = Callable[[np.ndarray, np.ndarray, np.ndarray, Resolution], np.ndarray]
WORSE = 0.005
"""Smallest loss of accuracy that counts as worse."""
LEVELS = (0.9, 0.95)


def distance_race(mask: np.ndarray, source: np.ndarray, sink: np.ndarray, resolution: Resolution) -> np.ndarray:
    near = [
        dijkstra3d.euclidean_distance_field(
            np.asfortranarray(mask), [tuple(seed) for seed in seeds.tolist()], anisotropy=resolution
        )
        for seeds in (source, sink)
    ]
    return (np.where(near[0] <= near[1], 1, 2) * mask).astype(np.uint8)


METHODS: dict[str, Method] = {"cut_mask": cut_mask, "distance race": distance_race}


@dataclass
class Tally:
    """Results of one method on one set."""

    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    voxels: int = 0
    refused: int = 0
    in_pieces: int = 0

    def run(self, method: Method, case: Case) -> None:
        self.voxels += int(case.mask.sum())
        begin = time.perf_counter()
        try:
            labels = method(case.mask, case.source, case.sink, case.resolution)
        except InputError:
            self.refused += 1
            labels = np.zeros(case.mask.shape, np.uint8)
        self.seconds.append(time.perf_counter() - begin)
        self.scores.append(balanced_accuracy(labels, case.truth))
        sides = (np.asfortranarray(labels == side) for side in (1, 2))
        self.in_pieces += any(cc3d.connected_components(side, connectivity=26).max() > 1 for side in sides)

    def row(self) -> str:
        speed = sum(self.seconds) / self.voxels * 1e6
        quality = f"{three(self.scores)} {self.refused:8d} {self.in_pieces:7d}"
        return f"{len(self.scores):5d} {quality} {speed:8.2f} {max(self.seconds):7.2f}"


def three(scores: Iterable[float]) -> str:
    """Mean, median and tenth percentile as text."""
    values = np.array(list(scores))
    return f"{values.mean():7.3f} {np.median(values):7.3f} {np.percentile(values, 10):7.3f}"


@dataclass
class Curve:
    """Accuracy of one case after 0, 1, 2, ... clicks; a cut without errors stays as it is."""

    scores: list[float]
    seconds: list[float]
    refused: bool = False

    def clicks_to(self, level: float) -> float:
        return next((float(n) for n, score in enumerate(self.scores) if score >= level), float("inf"))


def curve(case: Case, clicks: int, method: Method = cut_mask) -> Curve:
    """Let the simulated user correct a case; a refused cut is worth 0.5 and ends the user's work."""
    seeds = [case.source, case.sink]
    result = Curve([], [])
    while len(result.scores) <= clicks:
        begin = time.perf_counter()
        try:
            labels = method(case.mask, *seeds, case.resolution)
        except InputError:
            result.refused = True
            result.scores += [0.5] * (clicks + 1 - len(result.scores))
            return result
        result.seconds.append(time.perf_counter() - begin)
        result.scores.append(balanced_accuracy(labels, case.truth))
        click = next_click(labels, case.truth, case.resolution)
        if click is None:
            result.scores += result.scores[-1:] * (clicks + 1 - len(result.scores))
            return result
        side, place = click
        seeds[side - 1] = np.concatenate([seeds[side - 1], place[None]])
    return result


def print_curves(title: str, curves: list[Curve]) -> None:
    """Print a block of lines, one for each number of clicks."""
    scores = np.array([one.scores for one in curves])
    refused = sum(one.refused for one in curves)
    print(f"{title}: {len(curves)} cases, {refused} refused")
    print(f"{'clicks':>8} {'mean':>7} {'median':>7} {'p10':>7} {'worse':>7} {'s':>6}")
    for n, column in enumerate(scores.T):
        worse = f"{np.mean(column < scores[:, n - 1] - WORSE):7.2f}" if n else f"{'':7}"
        times = [one.seconds[n] for one in curves if len(one.seconds) > n]
        print(f"{n:8d} {three(column)} {worse} {np.mean(times) if times else 0:6.2f}")
    losses = np.diff(scores, axis=1) < -WORSE
    reached = (
        f"{level}: {np.median(needed):.0f} in the median, {np.mean(np.isinf(needed)):.0%} never"
        for level in LEVELS
        for needed in [[one.clicks_to(level) for one in curves]]
    )
    print(f"  clicks to {'; to '.join(reached)}")
    print(
        f"  worse by more than {WORSE}: {losses.mean():.1%} of the clicks, {losses.any(axis=1).mean():.0%} of the cases"
    )


def print_seeds(arguments: argparse.Namespace) -> None:
    """Print cuts with 1-3 seeds a side, and those of the rival."""
    columns = (
        f"{'cases':>5} {'mean':>7} {'median':>7} {'p10':>7} {'refused':>8} {'pieces':>7} {'s/10^6':>8} {'worst s':>7}"
    )
    print(f"{'kind':<12} {'seeds':>5} {'half':<12} {'method':<14} {columns}")
    for kind, n_seeds in [("fused", 1), ("fused", 2), ("fused", 3), ("straddling", 1), ("straddling", 3)]:
        for held_out in (False, True) if arguments.held_out else (False,):
            tallies = {name: Tally() for name in METHODS}
            cases = arguments.cases * (2 if kind == "straddling" else 1)
            for case in cases_of(arguments.data, kind, n_seeds, cases, held_out=held_out, seed=arguments.seed):
                for name, method in METHODS.items():
                    tallies[name].run(method, case)
            half = "held out" if held_out else "development"
            for name, tally in tallies.items():
                print(f"{kind:<12} {n_seeds:>5} {half:<12} {name:<14} {tally.row()}")
            ours, rival = tallies.values()
            errors = (1 - np.mean(ours.scores)) / (1 - np.mean(rival.scores))
            times = sum(ours.seconds) / sum(rival.seconds)
            print(f"{'':<32}{'ratio':<14} mean error {errors:.2f}, time {times:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of em_256.npz and fib_250.npz")
    parser.add_argument("--cases", type=int, default=24, help="of each set; twice as many straddling supervoxels")
    parser.add_argument("--clicks", type=int, default=6)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["fused", "straddling"])
    parser.add_argument("--held-out", action="store_true", help="the held-out halves")
    parser.add_argument("--seeds", action="store_true", help="compare numbers of seeds, without corrections")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.seeds:
        print_seeds(arguments)
        return
    for kind in arguments.kinds:
        straddling = kind == "straddling"
        for volume in ("em",) if straddling else ("em", "bodies"):
            cases = cases_of(
                arguments.data,
                kind,
                1,
                arguments.cases * (2 if straddling else 1),
                held_out=arguments.held_out,
                volume=volume,
                seed=arguments.seed,
            )
            half = "held out" if arguments.held_out else "development"
            curves = [curve(case, arguments.clicks) for case in cases]
            if curves:
                print_curves(kind if straddling else f"{kind} ({volume}), {half}", curves)


if __name__ == "__main__":
    main()
