"""Places as people write them: each is what it says, or is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
from hypothesis import given
from hypothesis import strategies as st

from sv_pipeline.config import parse_config, validate_graph_id
from sv_pipeline.errors import ConfigError
from sv_pipeline.ingest.watershed.source import open_source, split_key
from sv_pipeline.places import parse_folder, parse_source
from sv_pipeline.registry import Registry, default_home
from sv_pipeline.storage import kv
from sv_pipeline.table import open_table

HERE = "{here}"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("/d/cortex|v2", "file:///d/cortex%7Cv2/"),
        ("/d/run#3", "file:///d/run%233/"),
        ("/d/what?", "file:///d/what%3F/"),
        ("/d/a%20b", "file:///d/a%2520b/"),
        ("/d/ü b//", "file:///d/%C3%BC%20b/"),
        ("//d/ws", "file:///d/ws/"),
        ("file:/d/ws", "file:///d/ws/"),
        ("file://localhost/d/ws", "file:///d/ws/"),
        ("FILE:///d/a%20b", "file:///d/a%20b/"),
        ("./a:b", f"file://{HERE}/a%3Ab/"),
        ("2026:a", f"file://{HERE}/2026%3Aa/"),
        ("GS://bucket/a b", "gs://bucket/a%20b/"),
        ("precomputed://file:///d/ws|neuroglancer-precomputed:", "file:///d/ws/"),
        ("memory://a%23b", "memory://a%23b/"),
    ],
)
def test_a_folder_is_what_it_says(text: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = parse_folder(text)
    assert place.folder_url == url.replace(HERE, str(tmp_path))
    assert parse_folder(place.text) == parse_folder(place.folder_url) or place.scheme != "file"
    assert parse_folder(place.text).folder_url == place.folder_url == kv.as_url(place.folder_url)


NOT_UNDERSTOOD = [
    "", "  ", " /d", "/d\n", "/d/\x00", "gs:/bucket/x", "gs:bucket", "gs://", "gs://B/x", "gs://bucket/../x",
    "gs://bucket/a#b", "gs://bucket/a?b", "gs://bucket/a|zip:", "gs://bucket/a%zz", "gs://bucket/%2Fa", "foo://x/y",
    "ftp://host/x", "file://host/x", "file://d", "file:d", "file://~/x", "file:///a%00", "file:///a%FF", "file:///a%5Cb",
    "file:///a#b", "file:///a?b", "file:///a|b", "file:///a%2", "C:\\data", "C:/data", "\\\\host\\data", "a\\b", "a:b",
    "~nobody-of-this-name/x", "$HOME/x", "${HOME}/x", "/d/$USER/x", "precomputed://", "graphene://gs://bucket/x",
    "zarr://gs://bucket/x", "/d/x.zip|zip:seg/", "/d/\udcff", "/d/a.__lock", "https://", "https://[", "http://h/a#b",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_refused_everywhere_and_nothing_is_made(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for parse in (parse_folder, parse_source, split_key, open_source, kv.as_url):
        with pytest.raises(ConfigError) as error:
            parse(text)
        assert len(str(error.value)) < 400
    fields = {
        "data_source.WATERSHED": {"data_source": {"WATERSHED": text}},
        "data_source.EDGES": {"data_source": {"WATERSHED": "ws", "EDGES": text}},
        "data_source.COMPONENTS": {"data_source": {"WATERSHED": "ws", "COMPONENTS": text}},
        "source.segmentation": {"source": {"segmentation": text}},
        "source.agglomeration": {"source": {"segmentation": "a.npy", "agglomeration": text}},
        "source.affinities": {"source": {"segmentation": "a.npy", "affinities": text}},
        "backend_client.CONFIG.PATH": {"backend_client": {"CONFIG": {"PATH": text}}},
    }
    for name, raw in fields.items():
        with pytest.raises(ConfigError, match=name):
            parse_config({"graph_id": "g", "data_source": {"WATERSHED": "ws"}, **raw})
    with pytest.raises(ConfigError):
        Registry(text).graph_ids()
    if text and "\x00" not in text and not text.endswith("\udcff"):
        monkeypatch.setenv("SV_PIPELINE_HOME", text)
        with pytest.raises(ConfigError):
            default_home()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["/", "//", "/tmp/..", "file:///", "file:/", "precomputed://file:///"])
def test_the_root_of_all_files_is_no_folder_to_write_to(text: str) -> None:
    with pytest.raises(ConfigError, match="root of all files"):
        parse_folder(text)
    with pytest.raises(ConfigError, match=r"WATERSHED.*root of all files"):
        parse_config({"graph_id": "g", "data_source": {"WATERSHED": text}})


@pytest.mark.parametrize("home", ["gs://bucket/home", "memory://home"])
def test_sqlite_tables_are_never_put_into_a_local_folder_called_like_a_bucket(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse_config({"graph_id": "g", "data_source": {"WATERSHED": "ws"}})
    with pytest.raises(ConfigError, match="local disk"):
        open_table(config, home).create()
    open_table(config, f"file://{tmp_path}/my%20home").create()
    assert [path.name for path in tmp_path.iterdir()] == ["my home"]


@pytest.mark.parametrize(
    ("name", "text", "member"),
    [
        ("run#3/a.npz", "run#3/a.npz#seg", "seg"),
        ("run#3/a.npz", "run#3/a.npz", None),
        ("run#3/a.npz", "file://{here}/run%233/a.npz#seg", "seg"),
        ("b.npz#1/a.npz", "b.npz#1/a.npz#seg", "seg"),
        ("b.npz#1/a.npz", "b.npz#1/a.npz", None),
        ("a|b:c ü?.npz", "{here}/a|b:c ü?.npz", "refused"),
        ("a|b:c.npz", "file://{here}/a%7Cb:c.npz#seg", "seg"),
        ("a b.npy", "file://localhost{here}/a%20b.npy", None),
        ("a%20b.npy", "a%20b.npy", None),
        ("~/a.npy", "{here}/~/a.npy", None),
    ],
)
def test_a_file_is_found_by_any_of_its_names(
    name: str, text: str, member: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, array = tmp_path / name, np.arange(1, 9, dtype=np.uint32).reshape(2, 2, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".npz"):
        np.savez(path, seg=array)
    else:
        np.save(path, array)
    text = text.replace(HERE, str(tmp_path))
    if member == "refused":
        with pytest.raises(ConfigError, match="pipeline"):
            parse_source(text)
        return
    place = parse_source(text)
    assert (place.file, place.member) == (path, member)
    assert parse_source(place.text) == place
    assert np.array_equal(open_source(text).read(open_source(text).bounds), array)


def test_what_is_only_read_may_lie_elsewhere() -> None:
    assert parse_source("s3://bucket/a b").folder_url == "s3://bucket/a%20b/"
    assert parse_source("precomputed://https://host/ws").folder_url == "https://host/ws/"
    assert parse_source("https://host/ws?key=1").folder_url == "https://host/ws/?key=1"
    for text in ("s3://bucket/a", "https://host/ws"):
        with pytest.raises(ConfigError, match="none of"):
            parse_folder(text)


@pytest.mark.parametrize("given", [None, 5, b"/d", 1.5, ["/d"], "x" * 300, "/d" * 3000])
def test_what_cannot_be_a_path_is_refused_as_well(given: Any) -> None:
    for parse in (parse_folder, parse_source):
        with pytest.raises(ConfigError):
            parse(given)
    with pytest.raises(ConfigError):
        validate_graph_id(given)


def test_dots_after_a_link_are_refused_where_they_have_two_meanings(tmp_path: Path) -> None:
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/deep")
    assert parse_folder(tmp_path / "far/../ws").path == f"{tmp_path}/ws"
    with pytest.raises(ConfigError, match="two meanings"):
        parse_folder(tmp_path / "link/../ws")


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_whatever_is_understood_is_read_by_tensorstore_as_that_very_folder(name: str) -> None:
    """A path stands for itself, and one that our parser takes is never another one for the storage driver."""
    try:
        place = parse_folder(f"/d/{name}")
    except ConfigError:
        return
    stored = ts.KvStore.Spec(place.folder_url).to_json()
    assert stored["path"] == os.path.abspath(f"/d/{name}").rstrip("/") + "/"  # noqa: PTH100 - by characters


@given(st.text(st.sampled_from("afgs:/.#|?%~$\\ \u00e92b0"), max_size=24))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    for parse in (parse_folder, parse_source):
        try:
            place = parse(text)
        except ConfigError:
            continue
        assert parse(place.text) == place


@pytest.mark.parametrize("spec", ['{"driver":"gcs","bucket":"b","path":"x/"}', '{"driver":"file","path":"/tmp/x/"}'])
def test_a_spec_is_not_taken_for_the_name_of_a_folder(spec: str) -> None:
    with pytest.raises(ConfigError, match="looks like a spec"):
        parse_folder(spec)
