"""Texts of a viewer about previews and edits, from their numbers. Computes nothing."""

from __future__ import annotations

from typing import Any

from sv_pipeline.edits import CommittedEdit
from sv_pipeline.reports.edit_numbers import edit_numbers
from sv_pipeline.wording import counted

__all__ = ["describe_edit", "describe_merge", "describe_split"]


def describe_split(numbers: dict[str, Any]) -> str:
    """Describe a previewed split, given its numbers (:attr:`PreviewedSplit.numbers`)."""
    if not numbers["legal"]:
        return f"The split would be refused: {numbers['message']}"
    parts = [f"Preview: {numbers['objects']} objects would replace the one."]
    if "weight" in numbers:
        edges = counted(numbers["removed_edges"], "edge")
        parts.append(f"The cut has cost {numbers['weight']:.4g} and removes {edges}.")
    if sizes := numbers.get("supervoxels_of_parts"):
        parts.append(f"Supervoxels of the parts around the points: {', '.join(f'{size:,}' for size in sizes)}.")
    if "cut_voxels_source" in numbers:
        source, sink = numbers["cut_voxels_source"], numbers["cut_voxels_sink"]
        parts.append(
            f"{counted(numbers['split_supervoxels'], 'supervoxel')} would be cut: {source:,} voxels on the source "
            f"side, {sink:,} on the sink side."
        )
    if "doubt" in numbers:
        parts.append(f"Warning: {numbers['doubt']}")
    if numbers["still_one_object"]:
        parts.append("Warning: both sides would still be one object, connected elsewhere.")
    if enlarged := numbers["region_enlarged"]:
        times = counted(enlarged, "time")
        parts.append(f"Warning: the sides are also connected further away; the region was enlarged {times}.")
    return " ".join(parts)


def describe_merge(numbers: dict[str, Any]) -> str:
    """Describe a previewed merge, given its numbers (:attr:`PreviewedMerge.numbers`)."""
    if not numbers["legal"]:
        return f"The merge would be refused: {numbers['message']}"
    text = f"Preview: the objects {', '.join(map(str, numbers['roots']))} would become one."
    if numbers.get("needs_a_new_edge"):
        text += " Warning: they do not touch, so an edge would be added between the points."
    return text


def describe_edit(edit: CommittedEdit) -> str:
    """Describe an edit that was made."""
    numbers = edit_numbers(edit)
    old, new = (", ".join(map(str, numbers[key])) for key in ("old_roots", "new_roots"))
    text = f"Operation {edit.id} ({edit.kind}) is made: {old} became {new}."
    return text + (" Both sides are still one object." if numbers["still_one_object"] else "")
