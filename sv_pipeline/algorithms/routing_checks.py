"""Checks of a planned supervoxel split before anything is written. Repairs nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sv_pipeline.algorithms.components import component_labels, find
from sv_pipeline.algorithms.edge_routing import RoutedEdges
from sv_pipeline.algorithms.fragments import BoolArray, FragmentPlan, IntArray, is_placeholder, placeholder_index
from sv_pipeline.algorithms.local_edges import LocalEdges, combined
from sv_pipeline.errors import CorruptionError
from sv_pipeline.ids import UInt64Array

__all__ = ["require_sound_routing", "routing_findings"]


def require_sound_routing(plan: FragmentPlan, edges: LocalEdges, routed: RoutedEdges) -> None:
    """Raise CorruptionError, naming the defects, unless the new edges can replace the old ones."""
    findings = routing_findings(plan, edges, routed)
    if findings:
        raise CorruptionError(
            f"the edges of the split supervoxels would be wrong: {'; '.join(findings)}.",
            remedy="Nothing was written. Run sv-pipeline verify on the chunks around; report it if they are sound.",
        )


def routing_findings(plan: FragmentPlan, edges: LocalEdges, routed: RoutedEdges) -> list[str]:
    """Return the defects of the new edges; an empty list if there are none.

    Parameters
    ----------
    plan
        The fragments of the split.
    edges
        The old edges from which the new ones were made.
    routed
        The new edges.
    """
    old, new = combined(edges), routed.edges
    findings = _shape(plan, new)
    if findings:
        return findings
    owners = _owners(plan, new.pairs)
    findings += _missing(plan, old, routed, owners)
    findings += _joined_sides(plan, old, routed)
    return findings + _lost(plan, new, owners)


def _shape(plan: FragmentPlan, new: LocalEdges) -> list[str]:
    """Check that edges are unique and join two different nodes that exist."""
    findings = []
    if (new.pairs[:, 0] == new.pairs[:, 1]).any():
        findings.append(_name("an edge from a node to itself", new.pairs, new.pairs[:, 0] == new.pairs[:, 1]))
    if len(combined(new)) != len(new):
        findings.append("a pair of nodes has more than one new edge")
    gone = np.isin(new.pairs, plan.split_ids) | (new.pairs == 0)
    gone |= is_placeholder(new.pairs) & (placeholder_index(new.pairs) >= len(plan))
    if gone.any():
        findings.append(_name("an edge leads to a node that does not exist", new.pairs, gone.any(axis=1)))
    if not (new.affinities >= 0).all():
        findings.append(_name("an edge has no usable affinity", new.pairs, ~(new.affinities >= 0)))
    return findings


def _owners(plan: FragmentPlan, pairs: UInt64Array) -> UInt64Array:
    """Replace fragments by the supervoxels that they come from."""
    if not len(plan):
        return pairs
    fragments = is_placeholder(pairs)
    return np.where(fragments, plan.old_ids[np.where(fragments, placeholder_index(pairs), 0)], pairs)


def _missing(plan: FragmentPlan, old: LocalEdges, routed: RoutedEdges, owners: UInt64Array) -> list[str]:
    """Check that every old edge of a split supervoxel has a replacement, and that only those are retired."""
    findings = []
    touched = np.isin(old.pairs, plan.split_ids).any(axis=1)
    if not np.array_equal(old.pairs[touched], routed.retired):
        findings.append("the retired edges are not those of the split supervoxels")
    replaced = LocalEdges.of(owners).rows(old.pairs[touched]) >= 0
    if not replaced.all():
        findings.append(_name("an old edge has no replacement", old.pairs[touched], ~replaced))
    return findings


def _joined_sides(plan: FragmentPlan, old: LocalEdges, routed: RoutedEdges) -> list[str]:
    """Check that no two sides are connected by edges of affinity inf, including old ones that stay."""
    gone = LocalEdges.of(np.concatenate([routed.retired, routed.overridden])).rows(old.pairs) >= 0
    pairs = np.concatenate(
        [old.pairs[np.isinf(old.affinities) & ~gone], routed.edges.pairs[np.isinf(routed.edges.affinities)]]
    )
    ids = np.unique(np.concatenate([pairs.ravel(), plan.nodes]))
    component = component_labels(ids, pairs)[find(ids, plan.nodes)]
    low = np.full(len(ids), 255, np.uint8)
    high = np.zeros(len(ids), np.uint8)
    np.minimum.at(low, component, plan.node_sides)
    np.maximum.at(high, component, plan.node_sides)
    mixed = (low < high)[component]
    return [_name("nodes of two sides cannot be cut apart", plan.nodes, mixed)] if mixed.any() else []


def _lost(plan: FragmentPlan, new: LocalEdges, owners: UInt64Array) -> list[str]:
    """Check that the fragments of each supervoxel are still connected to each other."""
    brothers = owners[:, 0] == owners[:, 1]
    nodes = plan.nodes[: len(plan)]
    group = component_labels(np.sort(nodes), new.pairs[brothers & is_placeholder(new.pairs).all(axis=1)])
    per_old: IntArray = np.unique(np.stack([find(plan.split_ids, plan.old_ids), group]), axis=1)[0]
    apart = np.bincount(per_old, minlength=len(plan.split_ids)) > 1
    if not apart.any():
        return []
    return [_name("fragments of a supervoxel are not joined to each other", plan.split_ids, apart)]


def _name(what: str, things: npt.NDArray[np.uint64], wrong: BoolArray) -> str:
    first = things[np.flatnonzero(wrong)[0]]
    shown = " and ".join(
        f"fragment {placeholder_index(i)}" if is_placeholder(i) else f"supervoxel {i}" for i in np.atleast_1d(first)
    )
    return f"{what} ({shown}; {int(np.count_nonzero(wrong))} in all)"
