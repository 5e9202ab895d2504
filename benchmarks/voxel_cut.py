"""How well and how fast a mask of two fused objects is cut, on real segmentations with a known answer.

    python -m benchmarks.voxel_cut [--data ../shared/data] [--cases 16] [--seed 0]

Two kinds of cases:

* *fused*: two objects of ``em_256.npz`` that touch, as one mask; truth = the two objects. 1-3 seeds a side, at random,
  200-1200 nm from the other object, in every other case anywhere in the object, else in its deeper half;
* *straddling*: supervoxels of ``fib_250.npz`` that hold at least 500 voxels of each of two true bodies; the first seed
  of each side is the deepest voxel of its body there, further ones lie in its deeper half.

Objects and supervoxels are divided into a development and a held-out half by a hash of their id; a fused pair counts
only if both its objects are in one half. The score is the balanced accuracy: the mean over the two sides of the share
of true voxels with the right label. The rival in the same run is the *distance race*: each voxel to the side whose
seeds are nearer inside the object.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cc3d
import dijkstra3d
import edt
import numpy as np
from scipy.ndimage import find_objects

from sv_pipeline.algorithms.contacts import face_contacts
from sv_pipeline.algorithms.voxel_cut import cut_mask
from sv_pipeline.errors import InputError

Resolution = tuple[float, float, float]
Method = Callable[[np.ndarray, np.ndarray, np.ndarray, Resolution], np.ndarray]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

NEAREST_NM, FURTHEST_NM = 200.0, 1200.0
SMALLEST_CONTACT_FACES, SMALLEST_OBJECT, LARGEST_PAIR = 50, 3_000, 500_000
SMALLEST_BODY = 500


@dataclass(frozen=True)
class Case:
    """A mask with seeds and the true sides (1, 2; 0 = neither)."""

    name: str
    held_out: bool
    mask: np.ndarray
    truth: np.ndarray
    source: np.ndarray
    sink: np.ndarray
    resolution: Resolution


def is_held_out(name: str) -> bool:
    return bool(hashlib.sha256(name.encode()).digest()[0] % 2)


def tight_box(mask: np.ndarray) -> tuple[slice, ...]:
    return find_objects(mask.astype(np.uint8))[0]


def depth(mask: np.ndarray, resolution: Resolution) -> np.ndarray:
    return edt.edt(np.asfortranarray(mask), anisotropy=resolution, black_border=True)


def fused_cases(data: Path, seeds_a_side: int, cases: int, *, held_out: bool, seed: int = 0) -> Iterator[Case]:
    """Pairs of touching objects as one mask: its largest piece, so that an answer in two pieces exists as a rule."""
    with np.load(data / "em_256.npz") as file:
        volume, resolution = file["segmentation"], tuple(float(r) for r in file["resolution"])
    contacts, sizes, boxes = face_contacts(volume), np.bincount(volume.ravel()), find_objects(volume)
    of_pair = sizes[contacts.pairs]
    usable = (contacts.areas >= SMALLEST_CONTACT_FACES) & (of_pair.min(axis=1) >= SMALLEST_OBJECT)
    usable &= of_pair.sum(axis=1) <= LARGEST_PAIR
    pairs = [p for p in contacts.pairs[usable] if all(is_held_out(f"em_256{label}") == held_out for label in p)]
    rng = np.random.default_rng(seed + 1000 * seeds_a_side)
    made = 0
    for place in rng.permutation(len(pairs)):
        a, b = (int(label) for label in pairs[place])
        both = zip(boxes[a - 1], boxes[b - 1], strict=True)
        part = volume[tuple(slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in both)]
        mask = cc3d.largest_k(np.asfortranarray((part == a) | (part == b)), k=1, connectivity=26) > 0
        sides = mask & (part == a), mask & (part == b)
        where = None if made % 2 else "deep"
        chosen = [seeds_near(*pair, resolution, seeds_a_side, where, rng) for pair in (sides, sides[::-1])]
        if min(map(np.count_nonzero, sides)) < SMALLEST_OBJECT or any(seeds is None for seeds in chosen):
            continue
        yield Case(f"em-{a}-{b}", held_out, mask, sides[0] + 2 * sides[1].astype(np.uint8), *chosen, resolution)
        made += 1
        if made == cases:
            return


def seeds_near(
    side: np.ndarray, other: np.ndarray, resolution: Resolution, n: int, where: str | None, rng: np.random.Generator
) -> np.ndarray | None:
    """Random voxels of ``side`` 200-1200 nm from the other object; None if there are too few."""
    if not other.any():
        return None
    distance = edt.edt(np.asfortranarray(~other), anisotropy=resolution)
    usable = side & (distance >= NEAREST_NM) & (distance <= FURTHEST_NM)
    if where == "deep" and usable.any():
        deep = depth(side, resolution)
        usable &= deep >= np.median(deep[usable])
    candidates = np.argwhere(usable)
    return candidates[rng.choice(len(candidates), n, replace=False)] if len(candidates) >= n else None


def straddling_cases(data: Path, seeds_a_side: int, cases: int, *, held_out: bool, seed: int = 0) -> Iterator[Case]:
    """Supervoxels that straddle true bodies, at most ``cases`` of them."""
    with np.load(data / "fib_250.npz") as file:
        supervoxels, bodies = file["supervoxels"], file["groundtruth"]
        resolution = tuple(float(r) for r in file["resolution"])
    n_bodies = int(bodies.max()) + 1
    packed, sizes = np.unique(supervoxels.astype(np.int64) * n_bodies + bodies, return_counts=True)
    owner, body = np.divmod(packed, n_bodies)
    made = 0
    for label, box in enumerate(find_objects(supervoxels), start=1):
        inside = np.flatnonzero((owner == label) & (body > 0))
        largest = inside[np.argsort(-sizes[inside], kind="stable")[:2]]
        if len(largest) < 2 or sizes[largest[1]] < SMALLEST_BODY or is_held_out(f"fib{label}") != held_out:
            continue
        mask = supervoxels[box] == label
        sides = [mask & (bodies[box] == body[place]) for place in largest]
        rng = np.random.default_rng([seed, label])
        chosen = [deepest(side, resolution, seeds_a_side, rng) for side in sides]
        yield Case(f"fib-{label}", held_out, mask, sides[0] + 2 * sides[1].astype(np.uint8), *chosen, resolution)
        made += 1
        if made == cases:
            return


def deepest(side: np.ndarray, resolution: Resolution, n: int, rng: np.random.Generator) -> np.ndarray:
    deep = depth(side, resolution)
    candidates = np.argwhere(deep >= np.median(deep[side]))
    first = np.argwhere(deep == deep.max())[:1]
    return np.concatenate([first, candidates[rng.choice(len(candidates), n - 1, replace=False)]])


def distance_race(mask: np.ndarray, source: np.ndarray, sink: np.ndarray, resolution: Resolution) -> np.ndarray:
    near = [
        dijkstra3d.euclidean_distance_field(
            np.asfortranarray(mask), [tuple(seed) for seed in seeds.tolist()], anisotropy=resolution
        )
        for seeds in (source, sink)
    ]
    return (np.where(near[0] <= near[1], 1, 2) * mask).astype(np.uint8)


def balanced_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([(labels[truth == side] == side).mean() for side in (1, 2)]))


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
        mean, median, low = np.mean(self.scores), np.median(self.scores), np.percentile(self.scores, 10)
        speed = sum(self.seconds) / self.voxels * 1e6
        quality = f"{mean:7.3f} {median:7.3f} {low:7.3f} {self.refused:8d} {self.in_pieces:7d}"
        return f"{len(self.scores):5d} {quality} {speed:8.2f} {max(self.seconds):7.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of em_256.npz and fib_250.npz")
    parser.add_argument(
        "--cases", type=int, default=16, help="fused cases of each set; at most twice as many straddling ones"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sets = [(fused_cases, "fused EM", n) for n in (1, 2, 3)] + [(straddling_cases, "straddling FIB", n) for n in (1, 3)]
    columns = (
        f"{'cases':>5} {'mean':>7} {'median':>7} {'p10':>7} {'refused':>8} {'pieces':>7} {'s/10^6':>8} {'worst s':>7}"
    )
    print(f"{'set':<18} {'seeds':>5} {'half':<12} {'method':<14} {columns}")
    for make, kind, n_seeds in sets:
        for held_out in (False, True):
            tallies = {name: Tally() for name in METHODS}
            cases = arguments.cases * (2 if make is straddling_cases else 1)
            for case in make(arguments.data, n_seeds, cases, held_out=held_out, seed=arguments.seed):
                for name, method in METHODS.items():
                    tallies[name].run(method, case)
            half = "held out" if held_out else "development"
            for name, tally in tallies.items():
                print(f"{kind:<18} {n_seeds:>5} {half:<12} {name:<14} {tally.row()}")
            ours, rival = tallies.values()
            errors = (1 - np.mean(ours.scores)) / (1 - np.mean(rival.scores))
            times = sum(ours.seconds) / sum(rival.seconds)
            print(f"{'':<38}{'ratio':<14} mean error {errors:.2f}, time {times:.1f}", flush=True)


if __name__ == "__main__":
    main()
