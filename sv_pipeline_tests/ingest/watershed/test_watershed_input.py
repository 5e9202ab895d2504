"""Every kind of source that can be used, and one clear error, with nothing written, for those that cannot."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from sv_pipeline.config import parse_config
from sv_pipeline.errors import ConfigError, ConflictError, InputError
from sv_pipeline.ingest.watershed import prepare_watershed
from sv_pipeline.ingest.watershed.source import open_source
from sv_pipeline.storage import kv
from sv_pipeline.storage.precomputed import create_volume, open_volume, read_info
from sv_pipeline_tests.ingest.watershed.helpers import Made, dataset, float_precomputed, make_watershed, written

LABELS = np.random.default_rng(0).integers(0, 5, (9, 7, 5)).astype(np.uint16)


def precomputed(folder, labels, offset=(0, 0, 0)):
    url = kv.as_url(folder)
    create_volume(
        url, resolution=(4, 5, 6), voxel_offset=offset, size=labels.shape, chunk_size=(4, 4, 4), data_type="uint64"
    )
    open_volume(url, writable=True).write(labels.astype(np.uint64)).result()
    return url


# -- sources that can be used -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8"])
def test_labels_of_every_integer_type_give_the_same_supervoxels(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", LABELS)
    np.save(tmp_path / "b.npy", LABELS.astype(dtype))
    np.testing.assert_array_equal(Made(dataset(tmp_path / "a.npz")).volume, Made(dataset(tmp_path / "b.npy")).volume)


def test_npz_says_its_own_resolution_and_offset(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", other=LABELS[0], seg=LABELS, resolution=[4, 5.5, 6], voxel_offset=[7, 8, 9])
    plan = prepare_watershed(dataset(tmp_path / "a.npz", resolution=None))
    assert plan.resolution == (4, 5.5, 6)
    assert plan.bounds.start == (7, 8, 9)
    scale = read_info(plan.target).scales[0]
    assert (scale.voxel_offset, scale.size, scale.resolution) == ((7, 8, 9), (9, 7, 5), (4, 5.5, 6))


def test_the_configuration_overrules_resolution_and_offset(tmp_path):
    np.savez(tmp_path / "a.npz", seg=LABELS, resolution=[4, 5, 6], voxel_offset=[7, 8, 9])
    plan = prepare_watershed(dataset(tmp_path / "a.npz", resolution=(1, 2, 3), voxel_offset=(-5, 0, 2)))
    assert (plan.resolution, plan.bounds.start) == ((1, 2, 3), (-5, 0, 2))


def test_an_array_of_several_is_found_by_key_or_by_a_known_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=LABELS + 1, supervoxels=LABELS, y=LABELS + 2)
    for name, expected in (("", LABELS), ("#x", LABELS + 1), ("#y", LABELS + 2)):
        source = open_source(f"{tmp_path}/a.npz{name}")
        np.testing.assert_array_equal(source.read(source.bounds), expected)


def test_a_precomputed_volume_is_read_where_it_lies(tmp_path):
    np.savez(tmp_path / "a.npz", LABELS)
    url = precomputed(tmp_path / "pre", LABELS, (30, -4, 7))
    for path in (url, f"precomputed://{url}", str(tmp_path / "pre"), json.dumps(spec_of(url))):
        made = Made(dataset(path, resolution=None))
        assert made.plan.bounds.start == (30, -4, 7)
        assert made.plan.resolution == (4, 5, 6)
    np.testing.assert_array_equal(made.volume, Made(dataset(tmp_path / "a.npz")).volume)


def spec_of(url):
    return {"driver": "neuroglancer_precomputed", "kvstore": url}


def test_storage_chunks_never_straddle_chunks(tmp_path):
    np.savez(tmp_path / "a.npz", LABELS)
    sizes = {(256, 100, 74): (64, 50, 37), (97, 12, 65): (97, 12, 65), (512, 130, 3): (64, 26, 3)}
    for chunk_size, expected in sizes.items():
        plan = prepare_watershed(dataset(tmp_path / "a.npz", chunk_size))
        assert read_info(plan.target).scales[0].chunk_size == expected


# -- agglomeration ----------------------------------------------------------------------------------------------------


def row_of(n):
    """n labels in a row, 3 voxels each."""
    return np.repeat(np.arange(1, n + 1), 3).reshape(-1, 1, 1).astype(np.uint32)


def labels_by_root(made, labels):
    roots = made.roots()
    return sorted(sorted(int(v) for v in np.unique(labels[np.isin(made.volume, list(root))])) for root in roots)


def test_an_agglomeration_volume_puts_each_label_where_most_of_its_voxels_are(tmp_path):
    labels = row_of(5)
    objects = np.array([8, 8, 9, 8, 8, 0, 0, 0, 9, 3, 3, 3, 9, 9, 3]).reshape(-1, 1, 1)
    np.savez(tmp_path / "a.npz", labels)
    # the vote is over the whole volume, not over a chunk: label 2 has 2 : 1, though chunks cut it 1 : 0 and 1 : 1
    np.savez(tmp_path / "b.npz", objects)
    made = Made(dataset(tmp_path / "a.npz", agglomeration=tmp_path / "b.npz"))
    assert labels_by_root(made, labels) == [[1, 2], [3], [4], [5]]
    url = precomputed(tmp_path / "pre", objects)
    made = Made(dataset(tmp_path / "a.npz", agglomeration=url))
    assert labels_by_root(made, labels) == [[1, 2], [3], [4], [5]]


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_an_agglomeration_table_leaves_out_labels_that_stand_alone(tmp_path, kind):
    labels = row_of(6)
    table = {"label": [1, 2, 3, 5, 0], "object": [6, 6, 0, 4, 0]}
    if kind == "csv":
        rows = [f"{a},{b},x" for a, b in zip(*table.values(), strict=True)]
        (tmp_path / "t.csv").write_text("\n".join(["label, object, note", *rows]))
    else:
        np.savez(tmp_path / "t.npz", **table)
    np.save(tmp_path / "a.npy", labels)
    made = Made(dataset(tmp_path / "a.npy", agglomeration=tmp_path / f"t.{kind}"))
    # labels 4 and 6 stand alone, and are not mistaken for the objects 4 and 6
    assert labels_by_root(made, labels) == [[1, 2], [3], [4], [5], [6]]


# -- affinities -------------------------------------------------------------------------------------------------------


def test_affinities_are_means_over_faces_and_equal_in_both_files(tmp_path):
    labels = np.ones((8, 2, 2), np.uint8)
    labels[4:] = 2
    labels[7] = 3
    values = np.random.default_rng(1).random((8, 2, 2, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", labels)
    np.save(tmp_path / "v.npy", values)
    expected = {4.0: values[4, :, :, 0].mean(), 7.0: values[7, :, :, 0].mean()}
    for affinities in (tmp_path / "v.npy", float_precomputed(tmp_path / "pre", values)):
        made = Made(dataset(tmp_path / "a.npy", affinities=affinities))
        between, inside = (made.edges[0].between, made.edges[1].in_)
        np.testing.assert_allclose(between.affinities, [expected[4.0]], rtol=1e-6)
        np.testing.assert_allclose(inside.affinities, [expected[7.0]], rtol=1e-6)
        assert between.areas.tolist() == inside.areas.tolist() == [4]
        assert made.edges[1].between.affinities == between.affinities


def test_affinities_in_bytes_count_from_0_to_255(tmp_path):
    np.save(tmp_path / "a.npy", row_of(2))
    np.save(tmp_path / "v.npy", np.full((6, 1, 1, 3), 51, np.uint8))
    made = Made(dataset(tmp_path / "a.npy", (6, 4, 4), affinities=tmp_path / "v.npy"))
    np.testing.assert_allclose(made.edges[0].in_.affinities, [0.2])


def test_an_edge_table_gives_affinities_and_the_voxels_give_areas(tmp_path):
    np.save(tmp_path / "a.npy", row_of(4))
    (tmp_path / "e.csv").write_text("label_a,label_b,affinity,area\n2,1,0.75,99\n3,4,1.5,99\n1,4,0.5,1\n")
    made = Made(dataset(tmp_path / "a.npy", (12, 4, 4), affinities=tmp_path / "e.csv"))
    edges = made.edges[0].in_
    assert edges.affinities.tolist() == pytest.approx([0.75, 0.001, 1.5])
    assert edges.areas.tolist() == [1, 1, 1]


# -- sources that cannot be used --------------------------------------------------------------------------------------


def save(folder, name, array):
    np.save(folder / name, array)
    return folder / name


def text(folder, name, content):
    (folder / name).write_text(content)
    return folder / name


BAD_SOURCES = {
    "missing": (lambda f: f / "none.npz", "does not exist"),
    "missing npy": (lambda f: f / "none.npy", "does not exist"),
    "not an archive": (lambda f: text(f, "a.npz", "hello"), "cannot be read"),
    "not an array": (lambda f: text(f, "a.npy", "hello"), "cannot be read"),
    "pickled objects": (lambda f: save(f, "a.npy", np.array([[[{}]]])), "cannot be read"),
    "no volume": (lambda f: f, "cannot be opened as a volume"),
    "broken spec": (lambda f: '{"driver": ', "not a valid TensorStore spec"),
    "empty": (lambda f: save(f, "a.npy", np.zeros((0, 4, 4), np.uint8)), "is empty"),
    "background only": (lambda f: save(f, "a.npy", np.zeros((4, 4, 4), np.uint8)), "no label"),
    "floats": (lambda f: save(f, "a.npy", LABELS.astype(float)), "float64, not integer labels"),
    "booleans": (lambda f: save(f, "a.npy", LABELS > 1), "bool, not integer labels"),
    "negative": (lambda f: save(f, "a.npy", LABELS.astype(int) - 1), "negative labels"),
    "2-d": (lambda f: save(f, "a.npy", LABELS[0]), "2 dimensions"),
    "4-d": (lambda f: save(f, "a.npy", np.stack([LABELS, LABELS], -1)), "4 dimensions"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_a_bad_source_is_one_clear_error_and_nothing_is_written(tmp_path, name):
    make, message = BAD_SOURCES[name]
    refuse(dataset(make(tmp_path)), message)


def refuse(config, message, kind=(InputError, ConfigError)):
    with pytest.raises(kind, match=message):
        make_watershed(config)
    assert written(config) == []


def test_archives_that_leave_a_choice_or_lack_the_key_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", a=LABELS, b=LABELS)
    refuse(dataset(tmp_path / "a.npz"), "cannot tell which array")
    refuse(dataset(f"{tmp_path}/a.npz#c"), "holds no array 'c'.*It has: a, b")
    np.savez(tmp_path / "b.npz", a=LABELS, resolution=[1, 2])
    refuse(dataset(tmp_path / "b.npz", resolution=None), "resolution must be three numbers")
    np.savez(tmp_path / "c.npz", a=LABELS, voxel_offset=[0.5, 1, 2])
    refuse(dataset(tmp_path / "c.npz"), "voxel_offset must be whole numbers")
    data = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(data[: len(data) // 2])
    refuse(dataset(tmp_path / "d.npz"), "cannot be read")


def test_a_source_without_a_voxel_size_is_refused(tmp_path):
    refuse(dataset(save(tmp_path, "a.npy", LABELS), resolution=None), "the size of its voxels.*source.resolution")


def test_more_supervoxels_than_ids_have_room_for_are_refused(tmp_path):
    checkers = np.arange(1, 9 * 9 * 9 + 1).reshape(9, 9, 9)
    config = dataset(save(tmp_path, "a.npy", checkers), (9, 9, 9), graph_config={"SPATIAL_BITS": 16})
    refuse(config, "729 supervoxels, but there are only 255 ids.*SPATIAL_BITS")


def test_a_grid_with_more_chunks_than_ids_can_number_is_refused(tmp_path):
    config = dataset(save(tmp_path, "a.npy", LABELS), (1, 1, 1), graph_config={"SPATIAL_BITS": 3})
    refuse(config, "SPATIAL_BITS is 3.*CHUNK_SIZE")


BAD_AGGLOMERATIONS = {
    "missing table": (lambda f: f / "none.csv", "does not exist"),
    "other shape": (lambda f: save(f, "b.npy", LABELS[1:]), "does not cover"),
    "float volume": (lambda f: save(f, "b.npy", LABELS / 2), "not integer labels"),
    "negative volume": (lambda f: save(f, "b.npy", LABELS.astype(int) - 1), "negative"),
    "unknown label": (lambda f: text(f, "t.csv", "label,object\n1,1\n99,1\n"), "names 1 labels.*first 99"),
    "two objects": (lambda f: text(f, "t.csv", "label,object\n1,1\n1,2\n"), "label 1 into more than one object"),
    "background": (lambda f: text(f, "t.csv", "label,object\n0,2\n"), "label 0, the background"),
    "negative label": (lambda f: text(f, "t.csv", "label,object\n1,-1\n"), "cannot be read as a table.*-1"),
    "fraction": (lambda f: text(f, "t.csv", "label,object\n1,1.5\n"), "cannot be read as a table"),
    "gap": (lambda f: text(f, "t.csv", "label,object\n1,\n2,1\n"), "cannot be read as a table"),
    "other columns": (lambda f: text(f, "t.csv", "a,b\n1,2\n"), "cannot be read as a table.*label, object"),
    "empty table": (lambda f: text(f, "t.csv", ""), "it is empty"),
    "semicolons": (lambda f: text(f, "t.csv", "label;object\n1;1\n"), "first line, 'label;object'.*by commas"),
    "no header": (lambda f: text(f, "t.csv", "1,1\n2,1\n"), "first line, '1,1'"),
    "column twice": (lambda f: text(f, "t.csv", "label,object,object\n1,1,2\n"), "column object occurs twice"),
    "one more field": (lambda f: text(f, "t.csv", "label,object\n1,1\n2,1,3\n"), "line 3"),
    "more fields than names": (lambda f: text(f, "t.csv", "label,object\n0,1,1\n1,2,1\n"), "more fields than"),
    "a row cut short": (lambda f: text(f, "t.csv", "label,object\n1,1\n2\n"), "row 2: object is ''"),
    "hexadecimal": (lambda f: text(f, "t.csv", "label,object\n1,1\n0x2,1\n"), "row 2: label is '0x2'"),
    "too large": (lambda f: text(f, "t.csv", f"label,object\n1,{2**64}\n"), f"row 1: object is '{2**64}'.*at most"),
    "tabs": (lambda f: text(f, "t.tsv", "label\tobject\n1\t1\n"), "file of another kind.*must be a .csv"),
    "a folder": (lambda f: (f / "t.csv").mkdir() or f / "t.csv", "t.csv is not a file"),
}


@pytest.mark.parametrize("name", BAD_AGGLOMERATIONS)
def test_a_bad_agglomeration_is_one_clear_error_and_nothing_is_written(tmp_path, name):
    make, message = BAD_AGGLOMERATIONS[name]
    refuse(dataset(save(tmp_path, "a.npy", LABELS), agglomeration=make(tmp_path)), message)


EDGES = "label_a,label_b,affinity\n"
BAD_AFFINITIES = {
    "other shape": (lambda f: save(f, "v.npy", np.zeros((9, 7, 4, 3))), "does not cover"),
    "two channels": (lambda f: save(f, "v.npy", np.zeros((9, 7, 5, 2))), "2 channels"),
    "3-d": (lambda f: save(f, "v.npy", np.zeros((9, 7, 5))), "3 dimensions; expected 4"),
    "integers": (lambda f: save(f, "v.npy", np.zeros((9, 7, 5, 3), np.int32)), "expected floats"),
    "not finite": (lambda f: save(f, "v.npy", np.full((9, 7, 5, 3), np.nan)), "negative or not finite"),
    "negative": (lambda f: save(f, "v.npy", np.full((9, 7, 5, 3), -0.1)), "negative or not finite"),
    "unknown label": (lambda f: text(f, "e.csv", EDGES + "1,99,0.5\n"), "names 1 labels.*first 99"),
    "self loop": (lambda f: text(f, "e.csv", EDGES + "1,2,0.5\n2,2,0.5\n"), "row 2 .*to itself"),
    "not a number": (lambda f: text(f, "e.csv", EDGES + "1,2,nan\n"), "not a finite number"),
    "negative weight": (lambda f: text(f, "e.csv", EDGES + "1,2,-1\n"), "not a finite number of at least 0"),
    "background": (lambda f: text(f, "e.csv", EDGES + "0,2,0.5\n"), "label 0, the background"),
    "twice": (lambda f: text(f, "e.csv", EDGES + "1,2,0.5\n2,1,0.6\n"), r"pair \(1, 2\) two affinities"),
    "words": (lambda f: text(f, "e.csv", EDGES + "1,2,strong\n"), "row 1: affinity is 'strong', which is not a number"),
    "decimal commas": (lambda f: text(f, "e.csv", EDGES + "1,2,0,5\n"), "more fields than its first line has names"),
    "columns named otherwise": (lambda f: text(f, "e.csv", "a,b,affinity\n1,2,1\n"), "label_a and label_b"),
}


@pytest.mark.parametrize("name", BAD_AFFINITIES)
def test_bad_affinities_are_one_clear_error_and_nothing_is_written(tmp_path, name):
    make, message = BAD_AFFINITIES[name]
    refuse(dataset(save(tmp_path, "a.npy", LABELS), affinities=make(tmp_path)), message)


def test_a_store_is_checked_as_it_is_read(tmp_path):
    """What only all voxels tell is not known beforehand; but no edge file is written then."""
    url = precomputed(tmp_path / "pre", LABELS)
    table = text(tmp_path, "t.csv", "label,object\n99,1\n")
    config = dataset(url, agglomeration=table)
    with pytest.raises(InputError, match="names 1 labels"):
        make_watershed(config)
    assert not [key for key in written(config) if key.startswith(("edges", "components"))]
    config = dataset(precomputed(tmp_path / "zero", LABELS * 0))
    with pytest.raises(InputError, match="no label"):
        make_watershed(config)
    negative = float_precomputed(tmp_path / "negative", LABELS.astype(np.int16)[..., None] - 1, "int16")
    with pytest.raises(InputError, match="negative"):
        make_watershed(dataset(negative))


def test_without_a_source_there_is_nothing_to_make():
    config = parse_config({"graph_id": "g", "data_source": {"WATERSHED": "memory://none/"}})
    refuse(config, "no source", ConfigError)


# -- targets that cannot be used --------------------------------------------------------------------------------------


def test_a_target_with_another_dataset_is_refused(tmp_path):
    source = save(tmp_path, "a.npy", LABELS)
    foreign = precomputed(tmp_path / "pre", LABELS)
    before = kv.list_keys(foreign)
    with pytest.raises(ConflictError, match="holds another dataset"):
        make_watershed(dataset(source, target=foreign))
    assert kv.list_keys(foreign) == before
    config = dataset(source)
    kv.write_bytes(config.edges_url, "edges_0_0_0.proto.zst", b"x")
    with pytest.raises(ConflictError, match="holds another dataset"):
        make_watershed(config)


@pytest.mark.parametrize("target", ["file", "/proc/nowhere"])
def test_a_target_that_cannot_be_written_is_named(tmp_path, target):
    (tmp_path / "file").write_text("")
    place = f"{tmp_path}/file/ws" if target == "file" else target
    with pytest.raises(
        ConfigError, match=r"\.watershed/meta\.json.*not possible|cannot write to.*data_source\.WATERSHED"
    ):
        make_watershed(dataset(save(tmp_path, "a.npy", LABELS), target=place))


def test_a_target_begun_from_something_else_is_refused(tmp_path):
    source = save(tmp_path, "a.npy", LABELS)
    first = dataset(source)
    target = first.data_source.watershed
    make_watershed(first)
    np.save(tmp_path / "b.npy", LABELS)
    table = text(tmp_path, "t.csv", "label,object\n1,1\n")
    others = [
        dataset(source, (5, 4, 4), target),
        dataset(source, target=target, resolution=(1, 1, 1)),
        dataset(source, target=target, agglomeration=table),
        dataset(tmp_path / "b.npy", target=target),
    ]
    for other in others:
        with pytest.raises(ConflictError, match="another source or configuration"):
            make_watershed(other)
    # the same file with other content
    np.save(source, LABELS + 1)
    os.utime(source, ns=(1, 1))
    with pytest.raises(ConflictError, match="another source or configuration"):
        make_watershed(first)
