"""Files of a checkpoint that were cut, flipped or deleted: always noticed, named once, and the checkpoint before is used."""

from __future__ import annotations

import collections
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from killing import equal, write_data

from selftaught import cli
from selftaught.core import checkpoint
from selftaught.train import train

LOOP = sys.modules["selftaught.train"]
LENGTHS, FLIPS = 50, 200


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `whole`, a run of 8 steps whose last two checkpoints are there, and its data."""
    root = tmp_path_factory.mktemp("damage")
    data = write_data(root / "data.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
        train("mae", data, root / "whole", "tiny", steps=8, set=["batch_size=4"], quiet=True)
    return root


def damages(content: bytes, draw: random.Random) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Every damage of a file: 50 shorter lengths, 200 single bits, deletion."""
    lengths = {0, 1, len(content) - 1} | {draw.randrange(len(content)) for _ in range(10 * LENGTHS)}
    for length in sorted(lengths, key=lambda n: (n not in (0, 1, len(content) - 1), draw.random()))[:LENGTHS]:
        yield "truncations", lambda path, length=length: path.write_bytes(content[:length])  # type: ignore[misc]
    for place in draw.sample(range(8 * len(content)), FLIPS):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        yield "bit flips", lambda path, flipped=flipped: path.write_bytes(flipped)  # type: ignore[misc]
    yield "deletions", Path.unlink


def test_every_damage_is_noticed_and_the_checkpoint_before_is_used(
    runs: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(runs / "whole" / "checkpoints", folder)
    before, newest = sorted(folder.iterdir())
    names = sorted(path.name for path in newest.iterdir())
    assert names == ["manifest.json", "model.safetensors", "optim.autoencoder.safetensors", "state.json"]
    tried: collections.Counter[str] = collections.Counter()
    for name in names:
        path = newest / name
        content = path.read_bytes()
        for what, damage in damages(content, random.Random(name)):
            damage(path)
            heard: list[str] = []
            assert checkpoint.latest(folder, heard.append) == before, (name, what)
            assert len(heard) == 1 and newest.name in heard[0] and name in heard[0], heard
            tried[what] += 1
        path.write_bytes(content)
        assert checkpoint.latest(folder, pytest.fail) == newest
    assert tried == {"truncations": 4 * LENGTHS, "bit flips": 4 * FLIPS, "deletions": 4}
    for what, count in tried.items():
        record_property(f"{what}, noticed", count)


@pytest.mark.parametrize("what", ["truncations", "bit flips", "deletions"])
@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "optim.autoencoder.safetensors", "state.json"])
def test_a_run_goes_on_from_the_checkpoint_before_with_one_warning(
    runs: Path, tmp_path: Path, name: str, what: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "whole", run)
    (run / "log.txt").unlink()
    path = run / "checkpoints" / "step-000008" / name
    damage = next(damage for kind, damage in damages(path.read_bytes(), random.Random(0)) if kind == what)
    damage(path)
    cli.main(["resume", str(run)])
    shown = capfd.readouterr()
    warning = f"step-000008 is not used: {name}"
    assert (run / "log.txt").read_text().count("is not used") == 1 == shown.out.replace("\n", " ").count("is not used")
    assert warning in (run / "log.txt").read_text() and "step 7/8" in shown.out
    assert "is not used" not in shown.err and not caplog.records
    assert equal(runs / "whole", run)
