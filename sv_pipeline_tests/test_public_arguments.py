"""Every public function refuses what an argument cannot be, with one error of ours that shows it, and changes nothing.

The functions are found, and so are their arguments: one that is added is tried as well, and needs a line in `GOOD` only
if no argument of its name is known yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sv_pipeline
from sv_pipeline import graphs, recovery
from sv_pipeline.arguments import shown
from sv_pipeline.edits import CommittedEdit
from sv_pipeline.errors import SvPipelineError
from sv_pipeline.proofreading import OpenGraph, open_graph
from sv_pipeline.recovery.dry_run import dry_run
from sv_pipeline.verify.dataset import verify_changes, verify_dataset
from sv_pipeline_tests.editable import editable_graph, neighbours_of_two_objects, two_parts_of_an_object
from sv_pipeline_tests.graph.compare import dump

GOOD: dict[str, Callable[[World], Any]] = {
    "points": lambda w: [w.one],
    "source": lambda w: [w.one],
    "sink": lambda w: [w.other],
    "at": lambda w: w.made.id,
    "supervoxels": lambda w: w.graph.supervoxels([w.one]),
    "ids": lambda w: w.graph.roots([w.one]),
    "operation_id": lambda w: w.made.id,
    "operation_ids": lambda w: [w.made.id],
    "after": lambda w: w.made.id,
    "last": lambda w: 1,
    "since": lambda w: w.made.id,
    "follow": lambda w: False,
    "roots": lambda w: w.graph.roots([w.one]),
    "by": lambda w: "ada",
    "apply": lambda w: False,
    "over_others": lambda w: False,
    "user": lambda w: "ada",
    "reason": lambda w: "it is not wanted",
    "token": lambda w: "a-token",
    "allow_partial": lambda w: False,
    "allow_isolating_cut": lambda w: None,
    "deep": lambda w: False,
    "note": lambda w: True,
    "take_locks": lambda w: False,
    "region_memory": lambda w: 1 << 30,
    "min_age": lambda w: 0.0,
    "watch_seconds": lambda w: None,
    "watched": lambda w: None,
    "progress": lambda w: None,
    "tell": lambda w: None,
    "abandoned": lambda w: "",
    "checks": lambda w: ["meta"],
    "sample": lambda w: 1,
    "workers": lambda w: 1,
    "seed": lambda w: 0,
    "graph_id": lambda w: w.graph.dataset.graph_id,
    "home": lambda w: w.graph.dataset.home,
    "width": lambda w: 400,
}
"""A value of each argument, by its name."""
SUBJECTS = {"self", "graph", "dataset"}
"""What a function is about: the receiver of a method, in another word."""
FUNCTIONS: list[Callable[..., Any]] = [
    open_graph,
    *(
        function
        for name, function in inspect.getmembers(graphs, inspect.isfunction)
        if name in graphs.__all__ and name != "register"
    ),
    recovery.recover,
    recovery.recover_all,
    recovery.abandon,
    recovery.list_stuck,
    recovery.release_orphans,
    dry_run,
    verify_dataset,
    verify_changes,
    *(method for name, method in inspect.getmembers(OpenGraph, inspect.isfunction) if not name.startswith("_")),
]

LOOP: list[Any] = []
LOOP.append(LOOP)
TEXT = {"text": "a", "empty text": "", "blank": " ", "digits": "1", "bytes": b"u", "surrogate": "\ud800",
        "a line and another": "a\nb", "very long": "x" * 5000, "nul": "a\0b"}  # fmt: skip
NUMBERS = {"negative": -1, "zero": 0, "one": 1, "a fraction": 1.5, "a float": 1.0, "nan": float("nan"),
           "infinite": float("inf"), "too large": 1 << 64, "beyond any text": 10**5000, "complex": 1j,
           "a float of numpy": np.float64(2), "a duration": np.timedelta64(1, "s"), "not a time": np.datetime64("NaT"),
           "true": True, "a truth of numpy": np.True_}  # fmt: skip
LISTS = {
    "an empty list": [], "a list of one": [1], "a negative in a list": [-1], "text in a list": ["a"],
    "digits in a list": ["1"], "a fraction in a list": [1.5], "too large in a list": [1 << 64],
    "truths in a list": [True, False, True], "none in a list": [None], "a list in itself": LOOP,
    "five numbers": [1] * 5,
    "numbers in pairs": [(1, 2), (3, 4), (5, 6)], "a voxel with a truth": [(True, 2, 3)],
    "a voxel that is nan": [(float("nan"), 2, 3)], "a voxel that is complex": [(1j, 2, 3)],
    "a voxel as text": [("1", "2", "3")], "ragged": [(1, 2, 3), (4, 5)], "named by a float": [(1.0, 2, 3, 4)],
    "named below zero": [(-1, 2, 3, 4)], "a voxel far away": [(1 << 62, 2, 3)], "beyond int64": [(1 << 63, 2, 3)],
    "just inside int64": [((1 << 63) - 1, 2, 3)], "beyond any text": [(10**5000, 2, 3)],
}  # fmt: skip
ARRAYS = {
    "masked": np.ma.array([1, 2, 3], mask=[True, False, False]),
    "a masked voxel": np.ma.array([[1, 2, 3]], mask=[[True, False, False]]),
    "an array of truths": np.array([[True, False, True]]), "an array of text": np.array([["1", "2", "3"]]),
    "an array of floats": np.array([1.0, 2.0]), "an array of complex": np.array([[1j, 2, 3]]),
    "an array of objects": np.array([object()]), "an array of times": np.array(["2026-01-01"], "M8[s]"),
    "a table of one column": pd.DataFrame({"a": [1.5]}), "missing": pd.Series([1, None], dtype="UInt64"),
    "three axes": np.zeros((1, 1, 3), np.int64), "a record": np.zeros(1, "i4,i4"), "nothing at all": np.array(None),
}  # fmt: skip
OTHERS = {"none": None, "an object": object(), "a class": int, "a mapping": {"x": 1}, "a set": {1}, "a path": Path("x"),
          "a large range": range(10**30), "a generator": (i for i in [1])}  # fmt: skip
JUNK: dict[str, Any] = {**TEXT, **NUMBERS, **LISTS, **ARRAYS, **OTHERS}

NO_RIGHT = frozenset[str]()
FINE: dict[str, frozenset[str]] = {
    "again": frozenset({"true", "a truth of numpy"}),
    "allow_partial": frozenset({"true", "a truth of numpy"}),
    "allow_isolating_cut": frozenset({"true", "a truth of numpy"}),
    "deep": frozenset({"true", "a truth of numpy"}),
    "note": frozenset({"true", "a truth of numpy"}),
    "take_locks": frozenset({"true", "a truth of numpy"}),
    "points": frozenset({"an empty list"}),
    "source": frozenset({"an empty list"}),
    "sink": frozenset({"an empty list"}),
    "operation_id": frozenset({"one"}),
    "operation": frozenset({"one"}),
    "at": frozenset({"one"}),
    "progress": frozenset({"a class"}),
    "tell": frozenset({"a class"}),
    "watch_seconds": frozenset({"zero", "one", "a fraction", "a float", "a float of numpy"}),
    "reason": frozenset({"text", "digits", "a line and another"}),
    "abandoned": frozenset({"text", "digits", "empty text", "a line and another"}),
    "supervoxels": frozenset({"an empty list"}),
    "ids": frozenset({"an empty list"}),
    "operation_ids": frozenset({"an empty list", "one", "a list of one", "five numbers"}),
    "last": frozenset({"zero", "one"}),
    "since": frozenset({"zero", "one"}),
    "follow": frozenset({"true", "a truth of numpy"}),
    "apply": frozenset({"true", "a truth of numpy"}),
    "over_others": frozenset({"true", "a truth of numpy"}),
    "by": frozenset({"text", "digits"}),
    "roots": frozenset({"an empty list"}),
    "token": frozenset({"text", "digits"}),
    "user": frozenset({"text", "digits"}),
    "region_memory": frozenset({"zero", "one"}),
    "min_age": frozenset({"zero", "one", "a fraction", "a float", "a float of numpy"}),
    "home": frozenset({"empty text"}),
    "seed": frozenset({"zero", "one"}),
    "after": frozenset({"zero", "one"}),
    "sample": frozenset({"one"}),
    "workers": frozenset({"one"}),
    "layers": frozenset({"an empty list"}),
    "checks": frozenset({"an empty list"}),
}
"""What of it all an argument may be."""


@dataclass
class World:
    """A graph with one merge that was made and taken back."""

    graph: OpenGraph
    one: tuple[int, int, int]
    other: tuple[int, int, int]
    made: CommittedEdit
    parts: tuple[tuple[int, int, int], tuple[int, int, int]]

    def state(self) -> tuple[object, ...]:
        """All rows, those of refused operations aside, and the generation of the fork."""
        rows = dump(self.graph.dataset.table)
        kept = {key: row for key, row in rows.items() if not key.startswith((b"000", b"i"))}
        return kept, self.graph.dataset.fork.generation()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("arguments")
    graph = editable_graph(folder, folder / "home")
    one, other = neighbours_of_two_objects(graph)
    made = graph.merge([one], [other], user="ada")
    graph.undo(made.id, user="ada")
    return World(graph, one, other, made, two_parts_of_an_object(graph))


def arguments() -> Iterator[Any]:
    for function in FUNCTIONS:
        for name in inspect.signature(function).parameters:
            if name not in SUBJECTS:
                yield pytest.param(function, name, id=f"{function.__name__}-{name}")


@pytest.mark.parametrize(("function", "name"), list(arguments()))
def test_what_an_argument_cannot_be_is_one_error(world: World, function: Callable[..., Any], name: str) -> None:
    before, wrong = world.state(), []
    for what, junk in JUNK.items():
        if what in FINE.get(name, NO_RIGHT) or (junk is None and allows_none(function, name)):
            continue
        try:
            wrong.append((what, call(world, function, name, junk)))
        except SvPipelineError as error:
            if not is_clear(error):
                wrong.append((what, error))
        except Exception as error:  # noqa: BLE001 - all of them are told at once
            wrong.append((what, error))
    assert not wrong
    assert world.state() == before


def is_clear(error: SvPipelineError) -> bool:
    """Whether an error says what is wrong and what to do, in one line."""
    said = str(error)
    named = error.kind not in ("error", "defect") and bool(error.remedy)
    return named and len(said) < 500 and "\n" not in said and " object at 0x" not in said


def call(world: World, function: Callable[..., Any], name: str, value: Any) -> Any:
    """Call a function with one argument as given, and the others as they should be."""
    chosen: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            chosen["self"] = world.graph
        elif parameter.name == "graph":
            chosen["graph"] = world.graph.graph
        elif parameter.name == "dataset":
            chosen["dataset"] = world.graph.dataset
        elif parameter.name == name:
            chosen[name] = value
        elif parameter.name == "home":
            chosen["home"] = world.graph.dataset.home
        elif parameter.default is inspect.Parameter.empty:
            assert parameter.name in GOOD, f"{function.__name__}: add a good value of {parameter.name!r} to this test"
            chosen[parameter.name] = GOOD[parameter.name](world)
    if "split" in function.__name__:
        chosen |= {side: [p] for side, p in zip(("source", "sink"), world.parts, strict=True) if side != name}
    return function(**chosen)


def allows_none(function: Callable[..., Any], name: str) -> bool:
    return inspect.signature(function).parameters[name].default is None


def test_the_walk_meets_every_public_method() -> None:
    """Those that look and those that edit; a property takes no argument."""
    met = {function.__name__ for function in FUNCTIONS}
    assert {"roots", "lineage", "operations", "merge", "split", "undo", "segmentation_at", "find_edit"} <= met
    public = {name for name in sv_pipeline.__all__ if inspect.isfunction(getattr(sv_pipeline, name))}
    assert public <= met | {"register"}, "a function that is public belongs to FUNCTIONS"


@pytest.mark.parametrize(
    "config", [*NUMBERS.values(), *LISTS.values(), "", "\ud800", "nowhere.yaml", {}, {"a": 1}], ids=shown
)
def test_what_is_no_configuration_registers_nothing(tmp_path: Path, config: Any) -> None:
    with pytest.raises(SvPipelineError) as caught:
        sv_pipeline.register(config, tmp_path / "home")
    assert "\n  " in str(caught.value) or is_clear(caught.value)
    assert not (tmp_path / "home").exists()
