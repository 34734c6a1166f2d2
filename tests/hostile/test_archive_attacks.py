"""Archives made to do harm are refused, quickly, in little memory, and nothing is written anywhere."""

from __future__ import annotations

import os
import resource
import time
import tracemalloc
from pathlib import Path

import pytest
from archive_attacks import ARRAYS, OTHERS, TARS, file, header, npy, npz, tar

from selftaught.core.errors import DataError
from selftaught.data import archives
from selftaught.data.sources import open_data

ATTACKS = {**{f"tar: {k}": v for k, v in TARS.items()}, **{f"npz: {k}": v for k, v in ARRAYS.items()}, **OTHERS}
CPU_S = 2.0
MEMORY_BYTES = 32 * 2**20


def everything_below(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Name -> (mode, size, time) of every file and folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            state = os.lstat(Path(place) / name)
            found[os.path.join(place, name)] = (state.st_mode, state.st_size, state.st_mtime_ns)
    return found


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_is_refused_and_nothing_is_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "a" / "b" / "in"
    inside.mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    path = ATTACKS[name](inside)
    monkeypatch.chdir(inside)
    before, started = everything_below(tmp_path), time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            open_data(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert everything_below(tmp_path) == before
    assert time.process_time() - started < CPU_S and peak < MEMORY_BYTES, peak
    assert caught.value.what and len(str(caught.value)) < 3000
    assert not {"evil.png", "evil"} & set(os.listdir("/tmp"))


def test_there_are_enough_attacks() -> None:
    assert len(TARS) >= 45 and len(ARRAYS) >= 15


def test_what_carries_the_attacks_is_harmless_by_itself(tmp_path: Path) -> None:
    link = header(b"x/link.png", 0, b"2", b"../good.png")
    source = open_data(tar(file(b"x/evil.png"), header(b"x/", 0, b"5"), link)(tmp_path))
    assert source.keys == ["good", "x/evil"] and source.image(1).shape == (4, 5, 3)
    assert len(open_data(npz(("images.npy", npy((8, 4, 4, 3), bytes(384))))(tmp_path))) == 8


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3000)
    assert len(open_data(tar(*(file(b"%d.png" % i) for i in range(2999)))(tmp_path))) == 3000
    for more in (file(b"one more.png"), header(b"folder/", 0, b"5")):
        with pytest.raises(DataError, match="more than 3,000 members"):
            open_data(tar(*(file(b"%d.png" % i) for i in range(2999)), more)(tmp_path))


def test_what_is_packed_well_but_no_bomb_is_read(tmp_path: Path) -> None:
    drawn = bytes(4 * 2**20)  # a thousand to one as well, but small
    assert len(open_data(npz(("images.npy", npy((4, 1024, 1024, 1), drawn)))(tmp_path))) == 4


def test_a_large_tar_is_indexed_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    one = b"".join(header(b"%06d.png" % i, 0) for i in range(20_000))
    path.write_bytes(one + bytes(1024))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(open_data(path)) == 20_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
