"""A token planted in a configuration appears in nothing that a command prints, logs, dumps or leaves to others."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
import yaml

from sv_pipeline.config import parse_config
from sv_pipeline.registry import Registry, open_dataset
from sv_pipeline.reports.alerts import Alerts
from sv_pipeline_tests.ingest import builds
from sv_pipeline_tests.ingest.builds import CommandLine
from sv_pipeline_tests.test_redaction import PLACES

SECRET = "Zq7planted-token.x9"
FIELDS = (
    "source.segmentation",
    "source.agglomeration",
    "source.affinities",
    "data_source.WATERSHED",
    "ingest_config.x",
)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a port that nobody listens on."""
    monkeypatch.setenv("SV_PIPELINE_PATIENCE", "0.5")
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def config_with(folder: Path, field: str, value: str) -> dict[str, object]:
    raw = json.loads(json.dumps(builds.raw_config(folder)))
    section, _, name = field.partition(".")
    raw.setdefault(section, {})[name] = value
    return raw


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("place", [PLACES[i] for i in (0, 2, 7)])
def test_no_command_shows_it(
    cli: CommandLine, dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str, place: str
) -> None:
    monkeypatch.setenv("ERROR_DUMP", str(tmp_path / "dumps"))
    monkeypatch.setenv("SV_PIPELINE_LOGS", str(tmp_path / "logs"))
    value = (
        place.format(SECRET).replace("host.org", dead).replace("https://h", f"http://{dead}").replace("https:", "http:")
    )
    path = Path(tmp_path / "tissue.yaml")
    path.write_text(yaml.safe_dump(config_with(tmp_path, field, value)))
    said = [cli("ingest", path, "--layers", 2)]
    said += [cli("--verbose", *command, "tissue") for command in (["status"], ["info"], ["verify"], ["ops"])]
    path.write_text(path.read_text() + f"\n: [{value!r}\n")
    said += [cli("ingest", path), cli("list")]
    for one in said:
        assert SECRET not in one.out + one.err
        assert "defect" not in one.err
    for file in tmp_path.rglob("*"):
        if file.is_file() and file != path and SECRET.encode() in file.read_bytes():
            assert file.stat().st_mode & 0o777 == 0o600, file


def test_a_registry_entry_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        builds.register(builds.raw_config(tmp_path), tmp_path / "home")
    finally:
        os.umask(before)
    entry = tmp_path / "home/graphs/tissue.json"
    assert (entry.stat().st_mode & 0o777, entry.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list(entry.parent.iterdir()) == [entry]


def test_the_pipeline_itself_keeps_the_secret_and_takes_a_new_one(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "home"))
    for token in (SECRET, "another-token-77"):
        url = f"https://me:{token}@host.org/seg?token={token}"
        registry.register(parse_config(config_with(tmp_path, "source.segmentation", url)))
        found = open_dataset("tissue", registry.home).config.source
        assert found is not None
        assert found.segmentation == url


@pytest.mark.parametrize("answer", [b"garbage\r\n\r\n", b"", b"HTTP/1.1 500 no\r\n\r\n", b"HTTP/9 \xff\r\n"])
def test_a_webhook_that_answers_garbage_raises_nothing_and_is_not_shown(
    answer: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        assert not Alerts(f"http://127.0.0.1:{port}/services/T0/{SECRET}", timeout=5).send("hello", token=SECRET)
    assert "not sent" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "webhook", [f"ftp://h/{SECRET}", f"http://[{SECRET}", f"http://h:x/{SECRET}", f"http://a b/{SECRET}"]
)
def test_a_webhook_that_is_no_url_raises_nothing_and_is_not_shown(
    webhook: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert not Alerts(webhook, timeout=1).send("hello")
    assert SECRET not in caplog.text
