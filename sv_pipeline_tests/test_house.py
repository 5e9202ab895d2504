"""The rules of the house, held against its own sources: who may import whom, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sv_pipeline"
FLOORS = """
    redaction progress failpoints helper_threads moved backoff wording
    errors
    environment json_texts
    waiting patience processes memory defects ids yaml_files grid
    arguments posts
    moments places
    config_errors config_fields foreign_keys event_receivers
    ocdbt_config retention
    config
    algorithms storage table
    demo segmentation.base
    segmentation.fork
    graph
    operations registry
    feed
    ingest.watershed pyramid
    ingest edits.requests
    edits.plan
    edits.write
    edits verify
    recovery reports
    upkeep
    graph_history
    proofreading graphs
    viewer
    defs
    definitions
    cli
    testing
"""
"""The rooms, floor by floor: a room imports from floors below its own, and from itself."""
FLOOR_OF = {room: floor for floor, line in enumerate(FLOORS.split("\n")) for room in line.split()}
MAX_LINES, MAX_LINES_OF_TESTS = 420, 460
SOURCES = sorted(PACKAGE.rglob("*.py"))
IO_MODULES = {"io", "os", "pathlib", "shutil", "socket", "sqlite3", "subprocess", "tensorstore", "urllib"}

Imports = Iterator[tuple[int, str]]


@cache
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


def room_of(module: str) -> str:
    """The room of a module below the package: the longest name in the plan that it begins with."""
    parts = module.split(".")
    rooms = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((room for room in rooms if room in FLOOR_OF), "")


def packages_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name, below the package, of each module or package that is imported from here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if is_module(name) else node.module for name in names]
        else:
            continue
        yield from ((node.lineno, n.removeprefix("sv_pipeline.")) for n in names if n.startswith("sv_pipeline."))


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


def violations(rule: Callable[[str, ast.Module], Imports]) -> dict[str, str]:
    """What a rule finds in all sources: ``file:line`` to what is wrong."""
    return {
        f"{path.relative_to(ROOT)}:{line}": what
        for path in SOURCES
        for line, what in rule(module_of(path), tree_of(path))
    }


def test_every_module_has_a_room() -> None:
    packages_of_rooms = {room.rpartition(".")[0] for room in FLOOR_OF} | {""}
    assert not [m for m in map(module_of, SOURCES) if not room_of(m) and m not in packages_of_rooms]


def test_the_plan_of_the_house_says_what_the_rooms_say() -> None:
    plan = (ROOT / "docs" / "design" / "001-the-house.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([\w.]+)` \| (.+) \|$", plan, re.MULTILINE)
    floors = sorted(set(FLOOR_OF.values()))
    said = {room: (floors.index(floor), first_sentences(room)) for room, floor in FLOOR_OF.items()}
    assert {room: (int(floor), what) for floor, room, what in rows} == said


def first_sentences(room: str) -> str:
    """The first line of a room's docstring."""
    path = PACKAGE / room.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(tree_of(path)) or "").splitlines()[0]


def test_a_module_imports_only_from_floors_below() -> None:
    def rule(module: str, tree: ast.Module) -> Imports:
        room = room_of(module)
        for line, other in packages_of(tree) if room else ():
            below = room_of(other)
            if below != room and FLOOR_OF[below] >= FLOOR_OF[room]:
                yield line, f"{room} imports {other}"

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


def test_only_the_room_of_the_table_knows_its_backends() -> None:
    def rule(module: str, tree: ast.Module) -> Imports:
        if room_of(module) not in ("table", "testing"):
            backends = ("sv_pipeline.table.bigtable", "sv_pipeline.table.sqlite")
            yield from (i for i in imports_of(tree) if i[1].startswith(backends))

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
    """Elsewhere it would be forgotten that a worker must not see Ctrl-C, and must not outlive its parent.

    Nor may it be forked: TensorStore, once used, does not survive a fork. `processes` spawns its workers.
    """
    processes = {"multiprocessing", "concurrent.futures.ProcessPoolExecutor", "concurrent.futures.process"}

    def rule(module: str, tree: ast.Module) -> Imports:
        if module != "processes":
            yield from (i for i in imports_of(tree) if i[1] in processes)
        held = {part for node in ast.walk(tree) if isinstance(node, ast.With) and "interrupts_held()" in
                {ast.unparse(item.context_expr) for item in node.items} for part in ast.walk(node)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "subprocess.Popen" and node not in held:
                yield node.lineno, ast.unparse(node)
            # The fork server of the tests forks before it has used anything.
            if isinstance(node, ast.Attribute) and node.attr in ("fork", "forkpty") and ast.unparse(node.value) == "os":
                yield from () if module == "testing.harness.forkserver" else [(node.lineno, ast.unparse(node))]

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


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_module_says_what_it_owns() -> None:
    assert not violations(lambda _, tree: iter(() if ast.get_docstring(tree) else [(1, "no docstring")]))


def test_no_two_modules_need_each_other_to_load() -> None:
    """Modules of one room may use each other, but there is an order in which they load."""
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
