"""Masks of two fused objects with a known answer, and the simulated user who corrects a cut. Cuts nothing.

Kinds of cases, all from real segmentations:

* *fused*: two objects of ``em_256.npz`` that touch, as one mask; truth = the two objects. The seeds of each side lie at
  random 200-1200 nm from the other object, in every other case anywhere in the object, else in its deeper half;
* *bodies*: the same with true bodies of ``fib_250.npz``: another animal, another microscope, another voxel size;
* *twice*, *parallel*, *thick-thin*, *three*: fused pairs of either volume whose contact has several patches; whose
  contact is at least half as long as one of them; one of which is three times as thick as the other; with a third
  object that touches one of them (truth: its side is that of the object that it touches most);
* *straddling*: supervoxels of ``fib_250.npz`` that hold at least 500 voxels of each of two true bodies; the first seed
  of each side is the deepest voxel of its body there, further ones lie in its deeper half.

Objects, bodies and supervoxels are divided into a development and a held-out half by a hash of their id; a
fused pair counts only if all its objects are in one half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cc3d
import edt
import numpy as np
from scipy.ndimage import find_objects

from sv_pipeline.algorithms.contacts import face_contacts

Resolution = tuple[float, float, float]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

NEAREST_NM, FURTHEST_NM = 200.0, 1200.0
SMALLEST_CONTACT_FACES, SMALLEST_OBJECT, LARGEST_PAIR = 50, 3_000, 500_000
SMALLEST_BODY = 500
PAIR_KINDS = ("fused", "twice", "parallel", "thick-thin", "three")
KINDS = (*PAIR_KINDS, "straddling")
SEPARATE_NM, ALONG, THICKER = 400.0, 0.5, 3.0
"""Distance of the patches of a double contact; share of an object's length that a parallel contact has; calibres."""


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


@dataclass(frozen=True)
class Objects:
    """A segmentation whose touching objects are fused."""

    name: str
    labels: np.ndarray
    resolution: Resolution

    def is_held_out(self, label: int) -> bool:
        return is_held_out(f"{'em_256' if self.name == 'em' else self.name}{label}")


def is_held_out(name: str) -> bool:
    return bool(hashlib.sha256(name.encode()).digest()[0] % 2)


@cache
def load_objects(data: Path, name: str) -> Objects:
    """The objects of the cortex volume (``em``), or the true bodies of the other one (``bodies``)."""
    file_name, array = ("em_256.npz", "segmentation") if name == "em" else ("fib_250.npz", "groundtruth")
    with np.load(data / file_name) as file:
        return Objects(name, file[array], tuple(float(r) for r in file["resolution"]))


def balanced_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    """The mean over the two sides of the share of true voxels with the right label."""
    return float(np.mean([(labels[truth == side] == side).mean() for side in (1, 2)]))


def next_click(labels: np.ndarray, truth: np.ndarray, resolution: Resolution) -> tuple[int, np.ndarray] | None:
    """Return the true side and the place of a correction: the deepest voxel of the largest wrong piece.

    A wrong piece is a 26-connected component of the voxels whose label is not the true one. None if nothing is wrong.
    """
    wrong = (truth > 0) & (labels != truth)
    if not wrong.any():
        return None
    box = tight_box(wrong)
    piece = cc3d.largest_k(np.asfortranarray(wrong[box]), k=1, connectivity=26) > 0
    inside = depth(piece, resolution)
    place = np.argwhere(inside == inside.max())[0] + [side.start for side in box]
    return int(truth[tuple(place)]), place


def tight_box(mask: np.ndarray) -> tuple[slice, ...]:
    return find_objects(mask.astype(np.uint8))[0]


def depth(mask: np.ndarray, resolution: Resolution) -> np.ndarray:
    return edt.edt(np.asfortranarray(mask), anisotropy=resolution, black_border=True)


def cases_of(
    data: Path, kind: str, seeds_a_side: int, cases: int, *, held_out: bool, volume: str = "em", seed: int = 0
) -> Iterator[Case]:
    """At most ``cases`` cases of one of the ``KINDS``."""
    if kind == "straddling":
        return straddling_cases(data, seeds_a_side, cases, held_out=held_out, seed=seed)
    return fused_cases(data, seeds_a_side, cases, held_out=held_out, kind=kind, volume=volume, seed=seed)


def fused_cases(
    data: Path,
    seeds_a_side: int,
    cases: int,
    *,
    held_out: bool,
    kind: str = "fused",
    volume: str = "em",
    seed: int = 0,
) -> Iterator[Case]:
    """Touching objects as one mask: its largest piece, so that an answer in two pieces exists as a rule."""
    objects = load_objects(data, volume)
    labels, resolution = objects.labels, objects.resolution
    contacts, sizes, boxes = face_contacts(labels), np.bincount(labels.ravel()), find_objects(labels)
    of_pair = sizes[contacts.pairs]
    usable = (contacts.areas >= SMALLEST_CONTACT_FACES) & (of_pair.min(axis=1) >= SMALLEST_OBJECT)
    usable &= of_pair.sum(axis=1) <= LARGEST_PAIR
    pairs = [p for p in contacts.pairs[usable] if all(objects.is_held_out(label) == held_out for label in p)]
    if kind == "thick-thin":
        thickness = _thickness(labels, resolution)[np.array(pairs)]
        pairs = [p for p, t in zip(pairs, thickness, strict=True) if t.max() >= THICKER * t.min()]
    thirds = {tuple(p): int(area) for p, area in zip(contacts.pairs.tolist(), contacts.areas, strict=True)}
    rng = np.random.default_rng(seed + 1000 * seeds_a_side)
    made = 0
    for place in rng.permutation(len(pairs)):
        a, b = (int(label) for label in pairs[place])
        groups: tuple[list[int], list[int]] = ([a], [b])
        if kind == "three":
            third = _third(objects, a, b, thirds, sizes, held_out)
            if third is None:
                continue
            groups[third[1]].append(third[0])
        every = [boxes[label - 1] for group in groups for label in group]
        box = tuple(slice(min(s.start for s in p), max(s.stop for s in p)) for p in zip(*every, strict=True))
        part = labels[box]
        mask = cc3d.largest_k(np.asfortranarray(np.isin(part, groups[0] + groups[1])), k=1, connectivity=26) > 0
        sides = tuple(mask & np.isin(part, group) for group in groups)
        if min(map(np.count_nonzero, sides)) < SMALLEST_OBJECT or not _is_of_kind(kind, *sides, resolution):
            continue
        seeded = tuple(side & (part == group[0]) for side, group in zip(sides, groups, strict=True))
        where = None if made % 2 else "deep"
        near = ((seeded[0], sides[1]), (seeded[1], sides[0]))
        chosen = [seeds_near(*pair, resolution, seeds_a_side, where, rng) for pair in near]
        if any(seeds is None for seeds in chosen):
            continue
        truth = sides[0] + 2 * sides[1].astype(np.uint8)
        yield Case(f"{volume}-{a}-{b}", held_out, mask, truth, *chosen, resolution)
        made += 1
        if made == cases:
            return


def _thickness(labels: np.ndarray, resolution: Resolution) -> np.ndarray:
    """Depth of the deepest voxel of each label, in nm."""
    deepest_of = np.zeros(int(labels.max()) + 1)
    np.maximum.at(deepest_of, labels.ravel(), edt.edt(labels, anisotropy=resolution, black_border=True).ravel())
    return deepest_of


def _third(
    objects: Objects, a: int, b: int, contacts: dict[tuple[int, int], int], sizes: np.ndarray, held_out: bool
) -> tuple[int, int] | None:
    """The object that touches ``a`` or ``b`` most, and which of them (0, 1); None if none is usable."""
    found = []
    for (c, d), area in contacts.items():
        for third, own in ((c, d), (d, c)):
            if own in (a, b) and third not in (a, b) and objects.is_held_out(third) == held_out:
                total = sizes[[a, b, third]].sum()
                if area >= SMALLEST_CONTACT_FACES and sizes[third] >= SMALLEST_OBJECT and total <= LARGEST_PAIR:
                    found.append((area, -third, int(own == b)))
    if not found:
        return None
    _, third, side = max(found)
    return -third, side


def _is_of_kind(kind: str, one: np.ndarray, other: np.ndarray, resolution: Resolution) -> bool:
    if kind in ("fused", "three", "thick-thin"):
        return True
    near = one & (edt.edt(np.asfortranarray(~other), anisotropy=resolution) <= max(resolution))
    patches = cc3d.connected_components(np.asfortranarray(near), connectivity=26)
    sizes = np.bincount(patches.ravel())[1:]
    if kind == "parallel":
        longest = _length(patches == sizes.argmax() + 1, resolution)
        return longest >= ALONG * min(_length(side, resolution) for side in (one, other))
    large = [np.argwhere(patches == patch + 1) * resolution for patch in np.flatnonzero(sizes >= 20)]
    centres = np.array([places.mean(axis=0) for places in large]).reshape(-1, 3)
    return bool((np.linalg.norm(centres[:, None] - centres, axis=2) >= SEPARATE_NM).any())


def _length(mask: np.ndarray, resolution: Resolution) -> float:
    """Length of a shape if it were straight and even, in nm."""
    places = np.argwhere(mask) * resolution
    return float(np.sqrt(12 * np.linalg.eigvalsh(np.cov(places.T)).max())) if len(places) > 1 else 0.0


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
