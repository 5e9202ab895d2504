"""The walk-through of the first hour: its commands are commands, its configuration is one, and its pictures exist.

The page is not run here: that takes minutes, and needs its example file. Its outputs were pasted from a real run.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from sv_pipeline.cli.main import cli
from sv_pipeline.config import parse_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "first_hour.md").read_text()
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
HEREDOC = re.compile(r"^cat > (\S+) <<'END'\n(.*?)^END$\n", re.MULTILINE | re.DOTALL)
COMMANDS = [line for line in HEREDOC.sub("", SHELL).replace("\\\n", " ").splitlines() if line.strip()]
OTHERS = {"cd", "cp", "export", "mkdir"}
"""Commands of the shell that the page uses besides."""


def words_of(command: str) -> list[str]:
    """The words of a command, without assignments, and without what kills it after a time."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words[3:] if words[:1] == ["timeout"] else words


def parsed(words: list[str]) -> click.Context:
    """Parse a command line as the program does, down to the last subcommand; nothing is run."""
    context = cli.make_context("sv-pipeline", words)
    while isinstance(context.command, click.Group):
        name, command, rest = context.command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_parses(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"\b\w+\.yaml\b", command):
        Path(name).touch()
    words = words_of(command)
    match words[:1]:
        case ["sv-pipeline"]:
            assert parsed(words[1:]).command.callback is not None
        case ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case [other]:
            assert other in OTHERS


def test_the_commands_of_all_other_pages_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    failed, seen = [], 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                shown = re.fullmatch(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(sv-pipeline \w[^#|>&;]*).*", line.strip())
                if shown is None:
                    continue
                seen += 1
                try:
                    parsed(shlex.split(re.sub(r"\bOP\b", "7", shown[1]))[1:])
                except click.ClickException as error:
                    failed.append(f"{page.name}: {line}: {error.format_message()}")
    assert not failed
    assert seen > 40


def test_a_command_that_the_program_does_not_know_would_be_noticed() -> None:
    for wrong in ("split fly --source 1,2", "split fly --sauce 1,2,3", "splitt fly", "stuck heal fly 3"):
        with pytest.raises(click.UsageError):
            parsed(wrong.split())


def test_the_configuration_of_the_page_is_one() -> None:
    ((name, text),) = HEREDOC.findall(SHELL)
    assert name == "fly.yaml"
    config = parse_config(yaml.safe_load(text))
    assert config.graph_id == "fly"
    assert config.image is not None
    used = {words[words.index("fly") - 1] for words in map(words_of, COMMANDS) if "fly" in words}
    assert {"split", "view", "ops", "verify"} <= used


def test_the_pictures_of_the_page_exist_and_are_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) >= 5
    for picture in pictures:
        assert 0 < (ROOT / "docs" / picture).stat().st_size < 200_000, picture
