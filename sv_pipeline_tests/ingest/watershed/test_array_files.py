"""NumPy files as they come: in any order of bytes and axes, beside other members, and broken in every way."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sv_pipeline.errors import InputError
from sv_pipeline.ingest.watershed.array_files import load_npy
from sv_pipeline.ingest.watershed.source import open_source
from sv_pipeline.ingest.watershed.tables import read_object_table

LABELS = np.random.default_rng(0).integers(0, 5, (9, 7, 5)).astype(np.uint16)


def file_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def declares(shape: str, descr: str = "'<u4'", body: bytes = bytes(100)) -> bytes:
    """A file whose header says what it likes."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + body


def archive(folder: Path, **members: bytes) -> str:
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)
    return str(folder / "a.npz")


def read(path: str) -> np.ndarray:
    source = open_source(path)
    return source.read(source.bounds)


@pytest.mark.parametrize("dtype", [">u2", ">i4", ">u8", "<i8", "u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_order_of_bytes_and_axes_gives_the_same_labels(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.asarray(LABELS, dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", array)
    for name in ("a.npy", "a.npz"):
        voxels = read(str(tmp_path / name))
        assert voxels.dtype.isnative
        np.testing.assert_array_equal(voxels, LABELS)


def test_a_table_may_be_big_endian(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", label=np.array([1, 2], ">i4"), object=np.array([7, 7], ">u8"))
    assert read_object_table(str(tmp_path / "t.npz")).objects.tolist() == [7, 7]


def test_an_axis_for_the_one_channel_is_left_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", LABELS[..., None])
    np.savez(tmp_path / "a.npz", x=LABELS[..., None])
    for name in ("a.npy", "a.npz"):
        np.testing.assert_array_equal(read(str(tmp_path / name)), LABELS)


@pytest.mark.parametrize("label", [2**63, 2**64 - 1])
def test_labels_may_take_all_64_bits(tmp_path: Path, label: int) -> None:
    array = np.where(LABELS == 3, label, LABELS.astype(np.uint64))
    np.save(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(read(str(tmp_path / "a.npy")), array)


OBJECTS = b"\x93NUMPY\x01\x00" + declares("()", "'|O'")[8:]


@pytest.mark.parametrize(
    "other",
    [
        {"meta__npy": OBJECTS},
        {"readme__txt": b"hello"},
        {"other__npy": b""},
        {"raw__npy": declares("(3, 3)", "'<f8'", b"")},
    ],
)
def test_a_member_that_cannot_be_read_does_not_matter_beside_the_labels(
    tmp_path: Path, other: dict[str, bytes]
) -> None:
    np.testing.assert_array_equal(read(archive(tmp_path, seg__npy=file_of(LABELS), **other)), LABELS)


@pytest.mark.parametrize("broken", [b"garbage", declares("(9, 7, 5)", body=b"")])
def test_another_array_does_not_take_the_place_of_a_broken_one(tmp_path: Path, broken: bytes) -> None:
    path = archive(tmp_path, segmentation__npy=broken, other__npy=file_of(LABELS))
    with pytest.raises(InputError, match="segmentation"):
        read(path)
    np.testing.assert_array_equal(read(path + "#other"), LABELS)


@pytest.mark.parametrize("names", [("seg.npy", "seg.npy"), ("seg", "seg.npy")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_array_that_stands_twice_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name, array in zip(names, (LABELS, LABELS + 1), strict=True):
            file.writestr(name, file_of(array))
    for path in (tmp_path / "a.npz", f"{tmp_path / 'a.npz'}#seg"):
        with pytest.raises(InputError, match=r"seg.*occurs twice in the archive"):
            read(str(path))


BROKEN = {
    "huge": declares("(100000, 100000, 10000)"),
    "longer than it is": file_of(LABELS)[:-1],
    "huge numbers": declares("(10000000000000000000000000, 1, 1)"),
    "negative": declares("(-1, -7, 5)"),
    "code": declares("(__import__('os').getpid(),)"),
    "deep": declares("(" * 900 + ")" * 900),
    "objects": declares("(1, 1, 1)", "'|O'"),
    "version": b"\x93NUMPY\x09\x00" + declares("(1, 1, 1)")[8:],
    "empty": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_array_is_one_short_error_and_takes_no_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.npy").write_bytes(BROKEN[name])
    for path in (str(tmp_path / "a.npy"), archive(tmp_path, segmentation__npy=BROKEN[name])):
        with pytest.raises(InputError, match=r"a\.np.*(cannot be read|cannot tell)") as caught:
            read(path)
        assert len(str(caught.value)) < 600


def test_a_member_that_says_it_becomes_more_than_it_can_is_refused(tmp_path: Path) -> None:
    path = Path(archive(tmp_path, seg__npy=file_of(LABELS)))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"cannot be read|cannot tell"):
        read(str(path))


HEADERS = {
    "an expression": "{'descr': '<u8', 'fortran_order': False, 'shape': (2**70, 1, 1)}",
    "a name": "1 + x",
    "nested without end": "(" * 4000,
    "signs without end": "-" * 4000 + "1",
    "zeros": "\0",
    "an empty mapping": "{}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_describes_no_array_is_named_in_words(tmp_path: Path, name: str) -> None:
    text = HEADERS[name].encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(InputError, match=r"a\.npy cannot be read: its header does not describe an array") as error:
        load_npy(str(tmp_path / "a.npy"))
    assert "object at 0x" not in str(error.value)
