"""The rules of the house, held against its own sources: who may import whom, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sv_pipeline"
LAYERS = {
    "redaction": 0, "errors": 0, "defects": 0, "patience": 0, "failpoints": 0, "waiting": 0, "ids": 0, "grid": 0,
    "processes": 0, "config": 0, "config_errors": 0, "environment": 0, "json_texts": 0, "places": 0, "yaml_files": 0,
    "moments": 0, "arguments": 0,
    "algorithms": 1,
    "segmentation": 2, "table": 2,
    "graph": 3,
    "ingest": 4, "edits": 4, "verify": 4, "reports": 4, "registry": 4, "engine": 4, "proofreading": 4,
    "defs": 5, "cli": 5, "definitions": 5,
}  # fmt: skip
"""Of docs/architecture.md: a room imports from lower layers, and from itself."""
SHARED = (0, 4, 5)
"""Layers whose rooms may use each other."""
MAX_LINES, MAX_LINES_OF_TESTS = 420, 460
SOURCES = sorted(PACKAGE.rglob("*.py"))
IO_MODULES = {"io", "os", "pathlib", "shutil", "socket", "sqlite3", "subprocess", "tensorstore", "urllib"}

Imports = Iterator[tuple[int, str]]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def module_of(path: Path) -> str:
    """Name below the package: ``ingest.formats``; of the package itself ``""``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix("__init__").rstrip(".")


def imports_of(tree: ast.AST) -> Imports:
    """Line and full name of every import, those in functions included; of ``from a import b`` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield node.lineno, dots + (node.module or "")
            yield from ((node.lineno, f"{dots}{node.module}.{alias.name}") for alias in node.names)


def layer_of(module: str) -> tuple[str, int]:
    """Room and layer of a module below the package."""
    room = module.split(".")[0]
    assert room in LAYERS, f"{module} has no layer: docs/architecture.md and this test must know it"
    return room, LAYERS[room]


def violations(rule: Callable[[str, ast.Module], Imports]) -> dict[str, str]:
    """What a rule finds in all sources: ``file:line`` to what is wrong."""
    return {
        f"{path.relative_to(ROOT)}:{line}": what
        for path in SOURCES
        for line, what in rule(module_of(path), tree_of(path))
    }


def test_a_module_imports_only_from_layers_below() -> None:
    def rule(module: str, tree: ast.Module) -> Imports:
        if not module:
            return
        room, layer = layer_of(module)
        for line, name in imports_of(tree):
            if not name.startswith("sv_pipeline."):
                continue
            other, below = layer_of(name.removeprefix("sv_pipeline."))
            if not (other == room or below < layer or (below == layer and layer in SHARED)):
                yield line, f"{room} imports {name}"

    assert not violations(rule)


def test_imports_are_absolute() -> None:
    assert not violations(lambda _, tree: (i for i in imports_of(tree) if i[1].startswith(".")))


def test_dagster_stays_in_the_top_layer() -> None:
    def rule(module: str, tree: ast.Module) -> Imports:
        if not module.startswith(("defs", "definitions")):
            yield from (i for i in imports_of(tree) if i[1].split(".")[0].startswith("dagster"))

    assert not violations(rule)


def test_algorithms_do_no_input_and_output() -> None:
    def rule(module: str, tree: ast.Module) -> Imports:
        if module.startswith("algorithms"):
            yield from (i for i in imports_of(tree) if i[1].split(".")[0] in IO_MODULES)

    assert not violations(rule)


def test_nothing_runs_code_out_of_storage() -> None:
    forbidden = {"pickle.loads", "pickle.load", "eval", "exec", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}

    def rule(_: str, tree: ast.Module) -> Imports:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                pickles = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
                if called in forbidden or pickles:
                    yield node.lineno, ast.unparse(node)

    assert not violations(rule)


def test_processes_are_started_in_one_place() -> None:
    """Elsewhere it would be forgotten that a worker must not see Ctrl-C, and must not outlive its parent."""
    processes = {"multiprocessing", "concurrent.futures.ProcessPoolExecutor", "concurrent.futures.process"}

    def rule(module: str, tree: ast.Module) -> Imports:
        if module != "processes":
            yield from (i for i in imports_of(tree) if i[1] in processes)
        held = {part for node in ast.walk(tree) if isinstance(node, ast.With) and "interrupts_held()" in
                {ast.unparse(item.context_expr) for item in node.items} for part in ast.walk(node)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.Popen" and node not in held:
                yield node.lineno, ast.unparse(node)

    assert not violations(rule)


def test_a_remedy_does_not_tell_to_repeat_the_request() -> None:
    """That is said by ``repeat``, which is left out where the operation is unfinished and will be made anyway."""
    repeats = re.compile(r"\bthen (?:re)?try|\btry again|\bthen run (?:it |this )?again|\bask for the edit again", re.I)

    def rule(_: str, tree: ast.Module) -> Imports:
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "remedy":
                texts = [t.value for t in ast.walk(node.value) if isinstance(t, ast.Constant)]
                yield from ((node.value.lineno, t) for t in texts if isinstance(t, str) and repeats.search(t))

    assert not violations(rule)


def test_only_the_command_line_prints() -> None:
    def rule(module: str, tree: ast.Module) -> Imports:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print" and not module.startswith("cli"):
                yield node.lineno, ast.unparse(node)

    assert not violations(rule)


def test_every_module_says_what_it_owns() -> None:
    assert not violations(lambda _, tree: iter(() if ast.get_docstring(tree) else [(1, "no docstring")]))


def test_no_two_modules_need_each_other_to_load() -> None:
    """Rooms of one layer may use each other, but there is an order in which their modules load."""
    names = {f"sv_pipeline.{module_of(path)}": path for path in SOURCES}
    needs = {name: imports_at_load(tree_of(path)) & names.keys() - {name} for name, path in names.items()}
    order: list[str] = []

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name not in order:
            for other in sorted(needs[name]):
                visit(other, (*trail, name))
            order.append(name)

    for name in sorted(names):
        visit(name, ())


def imports_at_load(tree: ast.Module) -> set[str]:
    """Names that are imported when a module is loaded."""
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for node in nodes for _, name in imports_of(node)}


def test_files_are_short() -> None:
    tests = [path for folder in ("sv_pipeline_tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    limits = {**dict.fromkeys(SOURCES, MAX_LINES), **dict.fromkeys(tests, MAX_LINES_OF_TESTS)}
    lengths = {path: len(path.read_text().splitlines()) for path in limits}
    assert not {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > limits[path]}


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:  # an unpacked archive
        return [path for path in ROOT.rglob("*") if path.is_file() and path.relative_to(ROOT).parts[0] != ".git"]
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_path_of_a_developers_machine_is_in_the_repository() -> None:
    personal = re.compile(rb"(?<![\w.>}*])/(?:work|root|home/\w+|Users/\w+)/[\w.]")
    found = {
        f"{path.relative_to(ROOT)}:{number}": line.decode(errors="replace").strip()[:160]
        for path in tracked_files()
        if path != Path(__file__)
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if personal.search(line)
    }
    assert not found
