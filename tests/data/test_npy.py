"""Arrays that a run keeps: read again when they fit, made anew when they do not, whatever the file is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selftaught.data.npy import kept_array, read_kept

NUMBERS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_a_file_that_is_not_there_is_no_news(tmp_path: Path) -> None:
    said: list[str] = []
    assert read_kept(tmp_path / "a.npy", (3, 2), np.float32, said.append) is None and not said


def test_what_fits_is_read_and_may_have_any_size_where_it_says_so(tmp_path: Path) -> None:
    path, said = tmp_path / "a.npy", list[str]()
    np.save(path, NUMBERS)
    for shape in ((3, 2), (-1, 2), (3, -1)):
        kept = read_kept(path, shape, np.float32, said.append)
        assert kept is not None
        kept[0] = 7  # the reader's own
    mapped = read_kept(path, (3, 2), np.float32, said.append, mapped=True)
    assert isinstance(mapped, np.memmap) and (mapped == NUMBERS).all() and not said


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY", b"no array", b"\x80\x04N.", "objects", "archive", "short", "folder"]
)
@pytest.mark.parametrize("mapped", [False, True])
def test_any_other_file_is_made_anew(content: bytes | str, mapped: bool, tmp_path: Path) -> None:
    path, said = tmp_path / "a.npy", list[str]()
    if content == "folder":
        path.mkdir()
    elif content == "objects":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif content == "archive":
        with path.open("wb") as file:
            np.savez(file, NUMBERS)
    else:
        np.save(path, NUMBERS)
        path.write_bytes(path.read_bytes()[:-3] if isinstance(content, str) else content)
    assert read_kept(path, (3, 2), np.float32, said.append, mapped=mapped) is None
    assert said == ["a.npy does not fit the pictures; it is made again"]


@pytest.mark.parametrize(("shape", "dtype"), [((3, 3), np.float32), ((2, -1), np.float32), ((6,), np.float32), ((3, 2), np.float64)])
def test_another_shape_or_kind_does_not_fit(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", NUMBERS)
    said: list[str] = []
    assert read_kept(tmp_path / "a.npy", shape, dtype, said.append) is None and len(said) == 1


def test_an_array_is_made_once_and_again_when_numbers_went_wrong(tmp_path: Path) -> None:
    path, said, made = tmp_path / "a.npy", list[str](), []

    def make() -> np.ndarray:
        made.append(1)
        return NUMBERS.astype(np.float64)

    for _ in range(2):
        found = kept_array(path, (3, 2), make, said.append)
        assert found.dtype == np.float32 and (found == NUMBERS).all() and len(made) == 1
    np.save(path, np.full((3, 2), np.nan, np.float32))
    assert (kept_array(path, (3, 2), make, said.append) == NUMBERS).all() and len(made) == 2 and len(said) == 1
