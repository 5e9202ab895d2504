"""The house in numbers: sizes, annotations, docstrings, and the ways of four values through the code.

``python benchmarks/house.py`` prints the table of measures. ``--trips`` also runs a small world, and counts for each
way the files and folders that its calls enter, and how often they come back to a folder that they have left.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PRODUCT, TESTS = ROOT / "sv_pipeline", ROOT / "sv_pipeline_tests"
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions of a module, nested ones as well."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def is_annotated(function: Function) -> bool:
    """Whether the result and all parameters but ``self`` and ``cls`` have a type."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    named = [one for one in parameters if one is not None and one.arg not in ("self", "cls")]
    return function.returns is not None and all(one.annotation is not None for one in named)


def public(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | Function]:
    """The module, its public classes and functions, and the public methods of those classes."""
    yield tree
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (one for one in node.body if isinstance(one, Function) and not one.name.startswith("_"))


def print_measures() -> None:
    """The measures of ``docs/design/001-the-house.md``, for the product without `sv_pipeline.testing`."""
    files = [path for path in sorted(PRODUCT.rglob("*.py")) if "testing" not in path.relative_to(PRODUCT).parts]
    trees = {path: ast.parse(path.read_text()) for path in files}
    lengths = sorted(len(path.read_text().splitlines()) for path in files)
    every = [function for tree in trees.values() for function in functions(tree)]
    documented = [ast.get_docstring(node) is not None for tree in trees.values() for node in public(tree)]
    longest = max(every, key=lambda function: (function.end_lineno or 0) - function.lineno)
    broad = sum(
        isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")))
        for tree in trees.values()
        for node in ast.walk(tree)
    )
    of_tests = sum(len(path.read_text().splitlines()) for path in TESTS.rglob("*.py"))
    of_testing = sum(len(path.read_text().splitlines()) for path in (PRODUCT / "testing").rglob("*.py"))
    print(f"files                     {len(files)}")
    print(f"lines                     {sum(lengths):,}; of tests {of_tests:,}, of sv_pipeline.testing {of_testing:,}")
    print(f"median / p90 file         {statistics.median(lengths):.0f} / {statistics.quantiles(lengths, n=10)[-1]:.0f}")
    print(f"longest function          {longest.end_lineno - longest.lineno + 1} ({longest.name})")
    print(f"annotated functions       {100 * statistics.mean(map(is_annotated, every)):.1f} %")
    print(f"public docstrings         {100 * statistics.mean(documented):.1f} %")
    print(f"tests : source            {(of_tests + of_testing) / sum(lengths):.2f}")
    print(f"broad except clauses      {broad}")


def trip(action: Callable[[], Any]) -> str:
    """Files and folders that the calls of an action enter, in all of its threads."""
    files: list[str] = []

    def enter(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(PRODUCT)) and frame.f_code.co_name != "<module>":
            files.append(name)

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    folders = {str(Path(name).parent) for name in files}
    return f"{len(set(files)):3d} files in {len(folders):2d} folders"


def print_trips() -> None:
    """From points to a commit, from a killed operation to its recovery, from an edit to coarser mips."""
    import numpy as np

    from sv_pipeline.graphs import list_stuck, recover
    from sv_pipeline.pyramid.downsample import downsample
    from sv_pipeline.testing.harness.forkserver import running_fork_server
    from sv_pipeline.testing.harness.recovery import RecoveryHarness
    from sv_pipeline.testing.volumes import neuropil
    from sv_pipeline.testing.worlds import build

    with tempfile.TemporaryDirectory() as folder, running_fork_server() as fork_server:
        world = build(neuropil((64, 64, 32), seed=5), Path(folder), chunk_size=(32, 32, 16))
        graph, voxels = world.open(), world.voxels()
        objects = world.objects(voxels)
        first, second = np.unique(objects[objects > 0])[:2]
        one, other = ((np.argwhere(objects == root)[0] + world.offset).tolist() for root in (first, second))
        supervoxels, sizes = np.unique(voxels[voxels > 0], return_counts=True)
        inside = np.argwhere(voxels == supervoxels[sizes.argmax()]) + world.offset
        edits: list[Any] = []
        ends = [inside[0].tolist()], [inside[-1].tolist()]
        print("points to commit, a merge              ", trip(lambda: graph.merge([one], [other])))
        print("points to commit, a supervoxel split   ", trip(lambda: edits.append(graph.split(*ends))))
        fork, table = world.dataset.fork, world.table
        print("edited box to coarser mip              ", trip(lambda: downsample(fork, table=table)))
        RecoveryHarness(world, fork_server, Path(folder)).do(
            do="undo", operation=edits[0].id, failpoint="write started:kill"
        )
        name, home = world.dataset.config.graph_id, world.dataset.home
        (stuck,) = (operation for operation in list_stuck(name, home, min_age=0.0))
        print("killed operation to recovered          ", trip(lambda: recover(name, stuck.operation_id, home)))


def main() -> None:
    """Print the measures, and with ``--trips`` the ways as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trips", action="store_true", help="run a small world, and count files and folders")
    arguments = parser.parse_args()
    print_measures()
    if arguments.trips:
        print_trips()


if __name__ == "__main__":
    main()
