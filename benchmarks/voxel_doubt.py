"""How good the doubts about a cut are, and what a point at the place that they name is worth.

    python -m benchmarks.voxel_doubt [--data ../shared/data] [--cases 40] [--held-out]
    python -m benchmarks.voxel_doubt --fit [--picture docs/images/doubt.png]

The cases are those of ``voxel_cut_cases.py``, with one seed a side. Of the first cuts:

* how many are told to be doubtful, also of those that are right (balanced accuracy of 0.97 or more);
* of the parts that are told, how many are wrong: more than half of their voxels; and the share of their voxels that is
  wrong, beside the share that was expected;
* of the wrong pieces (connected, at least 1 % of the object), how many are doubtful: more than half of their voxels are
  in the part that is told, or in any doubtful part;
* the accuracy after one more point of the right side at the place that is named, at a random voxel, and in the deepest
  voxel of the largest wrong piece, which only somebody who knows the truth can find;
* how many points at named places it takes until no place is named any more;
* the time of a doubt as a share of the time of a cut.

``--fit`` prints the coefficients of the model in ``wavering.py``, fitted on development cases with one to three seeds a
side and corrections; the picture shows how its chances fit what is wrong.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cc3d
import numpy as np

from benchmarks.voxel_cut_cases import DATA, Case, balanced_accuracy, cases_of, next_click
from sv_pipeline.algorithms.voxel_cut import Doubt, VoxelCut, cut_voxels, find_doubt
from sv_pipeline.algorithms.voxel_cut.doubt import DoubtKind
from sv_pipeline.algorithms.voxel_cut.wavering import evidence, wavering_parts
from sv_pipeline.errors import InputError

Seeds = list[np.ndarray]

RIGHT_CUT = 0.97
SMALLEST_PIECE = 0.01
MOST_POINTS = 12
FITTED = [("fused", 1, 60, 1), ("fused", 2, 30, 0), ("fused", 3, 30, 0), ("twice", 1, 25, 1), ("parallel", 1, 25, 1)]
FITTED += [("three", 1, 25, 1), ("straddling", 1, 99, 1), ("straddling", 3, 99, 0)]
"""Kind, seeds a side, cases and corrections of the cuts on which the model is fitted."""


@dataclass
class Told:
    """A doubt that was told, and what is true."""

    kind: DoubtKind
    expected: float
    """Share of the part that was expected to be wrong."""
    wrong: float
    accuracy: float
    after: dict[str, float] = field(default_factory=dict)
    """Accuracy after one more point at the place, at a random voxel, and at the best place."""


@dataclass
class Tally:
    """Results of a set of cases."""

    cuts: int = 0
    right: int = 0
    right_told: int = 0
    told: list[Told] = field(default_factory=list)
    pieces: list[tuple[float, float]] = field(default_factory=list)
    """Of each wrong piece, the share that is in the part that is told, and that is in any doubtful part."""
    largest: list[tuple[float, float]] = field(default_factory=list)
    """The same of the largest wrong piece of each cut."""
    points: list[int] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)


def with_point(seeds: Seeds, side: int, place: np.ndarray) -> Seeds:
    """The seeds with one more, of side 1 or 2."""
    return [np.concatenate([own, place[None]]) if number == side else own for number, own in enumerate(seeds, 1)]


def cut_again(case: Case, seeds: Seeds) -> VoxelCut | None:
    try:
        return cut_voxels(case.mask, *seeds, case.resolution)
    except InputError:
        return None


def true_side(case: Case, cut: VoxelCut, place: np.ndarray) -> int:
    """The side that somebody who looks at a voxel gives it; where the truth is neither, the side that has it."""
    return int(case.truth[tuple(place)] or cut.sides[tuple(place)])


def doubtful_voxels(cut: VoxelCut) -> list[np.ndarray]:
    """The doubtful parts of a cut, as masks; films are not among them."""
    found = []
    for component in cut.parts:
        first = cut.sides[component.box][component.mask] == (1 if component.source_first else 2)
        for part in wavering_parts(component.mask, component.race, first):
            image = np.zeros(cut.sides.shape, np.bool_)
            image[component.box][component.mask] = part.voxels
            found.append((part.stake, image))
    return [image for _, image in sorted(found, key=lambda pair: -pair[0])]


def told_part(cut: VoxelCut, doubt: Doubt, parts: list[np.ndarray]) -> np.ndarray:
    """The mask of the part that a doubt is about."""
    if doubt.kind is DoubtKind.FILM:
        return cut.sides == doubt.side
    assert doubt.place is not None
    return next(part for part in parts if part[doubt.place] and np.count_nonzero(part) == doubt.voxels)


def examine(case: Case, tally: Tally, rng: np.random.Generator) -> None:
    """Cut a case, find the doubt, and compare it with the truth."""
    seeds = [case.source, case.sink]
    begin = time.perf_counter()
    cut = cut_again(case, seeds)
    middle = time.perf_counter()
    if cut is None:
        return
    doubt = find_doubt(cut, *seeds, case.resolution)
    tally.times.append((middle - begin, time.perf_counter() - middle))
    accuracy = balanced_accuracy(cut.sides, case.truth)
    tally.cuts += 1
    tally.right += accuracy >= RIGHT_CUT
    tally.right_told += accuracy >= RIGHT_CUT and doubt is not None
    parts = doubtful_voxels(cut)
    wrong = (case.truth > 0) & (cut.sides != case.truth)
    told = np.zeros_like(wrong) if doubt is None else told_part(cut, doubt, parts)
    every = np.logical_or.reduce([told, *parts])
    pieces = cc3d.connected_components(np.asfortranarray(wrong), connectivity=26)
    sizes = np.bincount(pieces.ravel())[1:]
    large = np.flatnonzero(sizes >= SMALLEST_PIECE * np.count_nonzero(case.mask)) + 1
    shares = [(float(told[pieces == one].mean()), float(every[pieces == one].mean())) for one in large]
    tally.pieces += shares
    if len(large):
        tally.largest.append(shares[int(sizes[large - 1].argmax())])
    if doubt is None:
        return
    tally.told.append(Told(doubt.kind, 1 - doubt.sure, float(wrong[told & (case.truth > 0)].mean()), accuracy))
    tally.told[-1].after = worth(case, cut, doubt, seeds, rng)
    tally.points.append(points_until_silence(case, cut, doubt, seeds))


def worth(case: Case, cut: VoxelCut, doubt: Doubt, seeds: Seeds, rng: np.random.Generator) -> dict[str, float]:
    """The accuracy after one more point at several places; a cut that is refused is worth 0.5."""
    places = {} if doubt.place is None else {"named": np.array(doubt.place)}
    voxels = np.argwhere(case.mask)
    places |= {f"random {n}": place for n, place in enumerate(voxels[rng.choice(len(voxels), 3, replace=False)])}
    best = next_click(cut.sides, case.truth, case.resolution)
    if best is not None:
        places["best"] = best[1]
    after = {}
    for name, place in places.items():
        again = cut_again(case, with_point(seeds, true_side(case, cut, place), place))
        after[name] = 0.5 if again is None else balanced_accuracy(again.sides, case.truth)
    return after


def points_until_silence(case: Case, cut: VoxelCut, doubt: Doubt | None, seeds: Seeds) -> int:
    """Place points where they are advised until none is; return how many, at most ``MOST_POINTS``."""
    named = set()
    while doubt is not None and doubt.place is not None and len(named) < MOST_POINTS:
        assert doubt.place not in named, "a place is named twice"
        named.add(doubt.place)
        place = np.array(doubt.place)
        seeds = with_point(seeds, true_side(case, cut, place), place)
        again = cut_again(case, seeds)
        if again is None:
            break
        cut, doubt = again, find_doubt(again, *seeds, case.resolution)
    return len(named)


def print_tally(title: str, tally: Tally) -> None:
    told = tally.told
    if not told:
        print(f"{title}: {tally.cuts} cuts, none doubtful")
        return
    films = sum(one.kind is DoubtKind.FILM for one in told)
    print(f"{title}: {tally.cuts} cuts, {len(told)} doubtful, {films} of them films")
    print(f"  of {tally.right} cuts that are right, told doubtful: {tally.right_told}")
    parts = [one for one in told if one.kind is DoubtKind.PART]
    for name, some in (("parts", parts), ("films", [one for one in told if one.kind is DoubtKind.FILM])):
        if some:
            half = sum(one.wrong > 0.5 for one in some)
            expected, wrong = (np.mean([getattr(one, key) for one in some]) for key in ("expected", "wrong"))
            print(
                f"  {name} told: {len(some)}, of them wrong {half}; wrong voxels {wrong:.2f}, expected {expected:.2f}"
            )
    for name, shares in (("wrong pieces", tally.pieces), ("largest wrong pieces", tally.largest)):
        called = np.array(shares).reshape(-1, 2) > 0.5
        first, every = called.sum(axis=0)
        print(f"  {name}: {len(called)}, in the part that is told {first}, in any doubtful part {every}")
    for name, some in (("parts", parts), ("all", told)):
        named = [one for one in some if "named" in one.after]
        if named:
            before = np.mean([one.accuracy for one in named])
            at = np.mean([one.after["named"] for one in named])
            blind = np.mean([np.mean([a for key, a in one.after.items() if key.startswith("random")]) for one in named])
            best = np.mean([one.after.get("best", one.accuracy) for one in named])
            print(
                f"  accuracy of the {len(named)} cuts ({name}): {before:.3f}; after a point at the place {at:.3f}, "
                f"at random {blind:.3f}, at the best place {best:.3f}"
            )
    print(f"  points until no place is named: median {np.median(tally.points):.0f}, at most {max(tally.points)}")
    cut, doubt = np.array(tally.times).sum(axis=0)
    print(f"  time of a doubt over that of a cut: {doubt / cut:.3f}", flush=True)


def reliability(chance: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> tuple[list[float], list[float]]:
    """The mean chance and the share that is wrong, weighted by voxels, in bins of a twentieth with enough of both."""
    expected, found = [], []
    for low in np.arange(0, 1, 0.05):
        chosen = (chance >= low) & (chance < low + 0.05)
        if weights[chosen].sum() >= 0.002 * weights.sum():
            expected.append(float(np.average(chance[chosen], weights=weights[chosen])))
            found.append(float(np.average(wrong[chosen], weights=weights[chosen])))
    return expected, found


def draw(path: Path, curves: dict[str, tuple[list[float], list[float]]]) -> None:
    """Draw how the chance of a cell and of a voxel fits the share that is wrong."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 5), dpi=150, layout="constrained")
    axes.plot([0, 0.7], [0, 0.7], color="0.7", linewidth=1)
    for (name, (expected, wrong)), colour in zip(curves.items(), ("#0072b2", "#d55e00"), strict=False):
        axes.plot(expected, wrong, marker="o", color=colour, label=name)
    axes.set(xlabel="chance to be wrong, as estimated", ylabel="share that is wrong", xlim=(0, 0.7), ylim=(0, 0.7))
    axes.legend(frameon=False)
    figure.savefig(path)


def corrected(case: Case, corrections: int) -> Iterator[VoxelCut]:
    """The cuts of a case as the simulated user corrects it."""
    seeds = [case.source, case.sink]
    for _ in range(corrections + 1):
        cut = cut_again(case, seeds)
        if cut is None:
            return
        yield cut
        click = next_click(cut.sides, case.truth, case.resolution)
        if click is None:
            return
        seeds = with_point(seeds, *click)


def samples(case: Case, cut: VoxelCut) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Cells, and voxels of divided cells: measures (n, k), whether each is wrong, and its share of the object."""
    for component in cut.parts:
        race, mask = component.race, component.mask
        if race.arrivals is None:
            continue
        sides, truth = cut.sides[component.box][mask], case.truth[component.box][mask]
        first, known = sides == (1 if component.source_first else 2), truth > 0
        wrong = known & (truth != sides)
        n = len(race.graph)
        size, of_first, seen, bad = (
            np.bincount(race.cells, weights=weights, minlength=n)
            for weights in (np.ones(len(first)), first, known, wrong)
        )
        divided = np.zeros(len(first), np.bool_) if race.leads is None else ~np.isnan(race.leads)
        usable = (seen > 0) & ~(race.arrivals == 0).any(axis=0)
        usable[race.cells[divided]] = False
        measures = np.stack(evidence(race.graph, race.arrivals, 2 * of_first >= size), axis=1)
        yield "cell", measures[usable], bad[usable] > 0.5 * seen[usable], size[usable] / len(first)
        if race.leads is not None:
            chosen = divided & known
            leads = np.where(first, race.leads, -race.leads)[chosen]
            yield "voxel", leads[:, None], wrong[chosen], np.full(len(leads), 1 / len(first))


def fitted(measures: np.ndarray, wrong: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The coefficients of a weighted logistic regression, the constant first (Newton's method)."""
    inputs = np.column_stack([np.ones(len(measures)), measures])
    model = np.zeros(inputs.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-inputs @ model))
        slope = inputs.T @ (weights * (wrong - chance))
        curvature = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs
        model += np.linalg.solve(curvature, slope)
    return model


def print_fit(data: Path, picture: Path | None) -> None:
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {"cell": [], "voxel": []}
    for kind, n_seeds, cases, corrections in FITTED:
        for case in cases_of(data, kind, n_seeds, cases, held_out=False):
            for cut in corrected(case, corrections):
                for name, *arrays in samples(case, cut):
                    measures, wrong, weights = arrays
                    found[name].append((measures, wrong, weights))
    curves = {}
    for name, some in found.items():
        measures, wrong, weights = (np.concatenate(column) for column in zip(*some, strict=True))
        model = fitted(measures, wrong, weights)
        share = np.average(wrong, weights=weights)
        print(f"{name}: {', '.join(f'{value:.2f}' for value in model)}; {len(wrong):,} samples, {share:.3f} wrong")
        chance = 1 / (1 + np.exp(-np.column_stack([np.ones(len(measures)), measures]) @ model))
        curves[f"{name}s"] = reliability(chance, wrong, weights)
    if picture is not None:
        draw(picture, curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of em_256.npz and fib_250.npz")
    parser.add_argument("--cases", type=int, default=40, help="of each set; all straddling supervoxels")
    parser.add_argument("--held-out", action="store_true", help="the held-out halves")
    parser.add_argument("--fit", action="store_true", help="fit the model instead")
    parser.add_argument("--picture", type=Path, help="with --fit: where to draw its reliability")
    arguments = parser.parse_args()
    if arguments.fit:
        print_fit(arguments.data, arguments.picture)
        return
    sets = [
        ("fused EM", "fused", "em"),
        ("fused bodies of FIB", "fused", "bodies"),
        ("straddling FIB", "straddling", "em"),
    ]
    rng = np.random.default_rng(0)
    for title, kind, volume in sets:
        tally = Tally()
        cases = 99 if kind == "straddling" else arguments.cases
        for case in cases_of(arguments.data, kind, 1, cases, held_out=arguments.held_out, volume=volume):
            examine(case, tally, rng)
        print_tally(f"{title}, {'held out' if arguments.held_out else 'development'}", tally)


if __name__ == "__main__":
    main()
