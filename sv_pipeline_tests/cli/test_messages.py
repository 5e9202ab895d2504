"""Messages that name a command or an option: it exists. Wrong arguments get a sentence with the remedy."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sv_pipeline.cli.kinds import Number, Whole
from sv_pipeline.cli.main import COMMANDS
from sv_pipeline.cli.main import cli as group
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.test_house import ROOT, SOURCES, tree_of

NAMED = re.compile(r"(?<!-n )sv-pipeline(?: --[a-z]+ \S+)? ([a-z][a-z-]+)(?: ([a-z][a-z-]+))?")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OPTIONS_OF_OTHERS = {"--concurrency", "--bind"}
"""Of Celery's worker, and of `storage.coordinator`, which is a program of its own."""


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name: ``stuck list``."""
    for name, (place, _) in COMMANDS.items():
        module, attribute = place.split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {below}", one) for below, one in command.commands.items())


TREE = dict(commands())
PARAMETERS = [parameter for command in (group, *TREE.values()) for parameter in command.params]
OPTIONS = {option for parameter in PARAMETERS for option in (*parameter.opts, *parameter.secondary_opts)}


def texts() -> Iterator[tuple[str, str]]:
    """Strings of the product that are no docstrings, with the fields of f-strings as ``GRAPH``; and the pages."""
    for path in SOURCES:
        tree = tree_of(path)
        documentation = {id(node.body[0].value) for node in ast.walk(tree) if has_docstring(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "GRAPH" for part in node.values]
                yield str(path.relative_to(ROOT)), "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                yield str(path.relative_to(ROOT)), node.value
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        yield path.name, path.read_text()


def has_docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    return isinstance(body, list) and bool(body) and isinstance(body[0], ast.Expr)


def test_every_command_and_option_that_a_text_names_exists() -> None:
    wrong, known = [], OPTIONS | OPTIONS_OF_OTHERS
    for place, text in texts():
        for name, below in NAMED.findall(text):
            if name not in COMMANDS or (below and name == "stuck" and f"stuck {below}" not in TREE):
                wrong.append(f"{place}: sv-pipeline {name} {below}")
        if " " in text and "cli/" not in place and place.startswith("sv_pipeline/"):
            wrong += [f"{place}: {option}" for option in OPTION.findall(text) if option not in known]
    assert not wrong


@pytest.mark.parametrize("name", TREE)
def test_numbers_are_refused_in_our_words_in_every_command(name: str) -> None:
    for parameter in TREE[name].params:
        kinds = parameter.type.types if isinstance(parameter.type, click.Tuple) else [parameter.type]
        for kind in kinds:
            assert type(kind) not in (click.IntRange, click.FloatRange, type(click.INT), type(click.FLOAT))
            if isinstance(kind, Whole | Number):
                for text in ("abc", "-1", "nan", "1e99", ""):
                    with pytest.raises(click.BadParameter, match="Write") as error:
                        kind.convert(text, parameter, None)
                    assert "range x" not in error.value.message


def test_an_operation_that_is_no_number_names_the_list_of_the_graph(cli: CommandLine) -> None:
    said = cli("undo", "demo", "abc")
    assert said.code == 2
    assert "'abc' is not a whole number" in said.err
    assert "'sv-pipeline ops demo' lists them" in said.err


def test_a_command_that_is_mistyped_is_guessed(cli: CommandLine) -> None:
    assert "Did you mean status?" in cli("statsu").err
    assert "Did you mean recover?" in cli("stuck", "recvoer").err


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["status", "demo"], ["undo", "demo", "1"]])
def test_a_home_that_does_not_exist_is_named(cli: CommandLine, tmp_path: Path, command: list[str]) -> None:
    cli.home = tmp_path / "nonexistent"
    said = cli(*command)
    assert said.code == 1
    assert f"the home {cli.home} does not exist" in said.err
    assert not cli.home.exists()
