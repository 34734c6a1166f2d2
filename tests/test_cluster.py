"""Bulk work on a cluster: the answer of one process, whatever is killed, torn, broken or started again."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selftaught import apply, cluster
from selftaught.core.errors import EXIT_DATA, ConfigError, DataError, RunError
from selftaught.data.arrays import ArraySource
from selftaught.data.sources import open_data
from selftaught.report.exports import read_embeddings
from selftaught.train import train

parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'selftaught[cluster]'")

SHARDS, EACH = 5, 64


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def pictures(first: int, count: int) -> dict[str, bytes]:
    source = open_data(f"sample:things:{SHARDS * EACH}", "train")
    files = {}
    for i in range(first, first + count):
        buffer = io.BytesIO()
        Image.fromarray(source.image(i)).save(buffer, "JPEG")
        files[f"{i:06d}.jpg"] = buffer.getvalue()
    return files


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five tars of 64 pictures: two whole batches each, so that batches are those of one process."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS):
        write_tar(folder / f"s-{number:03d}.tar", pictures(number * EACH, EACH))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("simclr", "sample:things:64", tmp_path_factory.mktemp("runs") / "simclr", size="tiny", quiet=True)


@pytest.fixture(scope="module")
def cut(run: Path) -> Path:
    need = [f"features={run}"]
    return train("lost", "sample:things:64", run.parent / "lost", size="tiny", need=need, quiet=True)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two processors on this machine, without anything that listens or reports."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'selftaught[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        cluster._start(ray, 2)
        yield ray
        ray.shutdown()


def parts_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.glob("part-*"))}


def assert_equal_to_one_process(folder: Path, run: Path, data: Any, tmp_path: Path) -> None:
    names, vectors = read_embeddings(apply.embed(run, data, tmp_path / "one.npz", quiet=True))
    found, theirs = read_embeddings(folder)
    assert found == names and len(names) == SHARDS * EACH
    assert np.array_equal(theirs, vectors), np.abs(theirs - vectors).max()


def workers() -> list[int]:
    """Process numbers of the workers of our own Ray: their titles say so, and their parent's parent is this process."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker") and parent(parent(int(entry.name))) == os.getpid():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """Kill a worker as soon as one is in the middle of a part, or has finished the first of many."""
    end = time.monotonic() + 300
    while time.monotonic() < end and not killed:
        if any(folder.glob(".tmp-*.parquet")) or any(folder.glob("part-*")):
            for pid in workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.002)


def test_a_killed_worker_changes_nothing(ray: Any, run: Path, shards: Path, tmp_path: Path) -> None:
    folder, killed = tmp_path / "out", []  # type: ignore[var-annotated]
    killer = threading.Thread(target=kill_a_worker, args=(folder, killed))
    killer.start()
    assert cluster.embed(run, shards, folder, workers=2, quiet=True) == folder
    killer.join()
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    assert_equal_to_one_process(folder, run, shards, tmp_path)
    manifest = json.loads((folder / cluster.MANIFEST).read_text())
    assert manifest["finished"] and manifest["pictures"] == SHARDS * EACH and manifest["bad"] == 0
    assert [one["pictures"] for one in manifest["files"]] == [EACH] * SHARDS
    left = {entry.name for entry in folder.iterdir()} - {f"part-{i:05d}.parquet" for i in range(SHARDS)}
    assert left == {cluster.MANIFEST, "_work"} and not list((folder / "_work").iterdir())


def test_a_restart_does_only_what_is_missing(ray: Any, run: Path, shards: Path, tmp_path: Path) -> None:
    folder = cluster.embed(run, shards, tmp_path / "out", workers=2, quiet=True)
    before = parts_of(folder)
    cluster.embed(run, shards, folder, workers=1, quiet=True)
    assert parts_of(folder) == before
    (folder / "part-00001.parquet").unlink()
    torn = folder / "part-00003.parquet"
    torn.write_bytes(torn.read_bytes()[:-7])
    cluster.embed(run, shards, folder, workers=2, quiet=True)
    after = parts_of(folder)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    rewritten = {name for name in before if after[name][0] != before[name][0]}
    assert rewritten == {"part-00001.parquet", "part-00003.parquet"}


def test_segments_are_those_of_one_process(ray: Any, cut: Path, shards: Path, tmp_path: Path) -> None:
    data = [shards / "s-000.tar", shards / "s-001.tar"]
    folder = cluster.segment(cut, data, tmp_path / "out", workers=2, quiet=True, threshold=0.4)
    one = apply.segment(cut, data, tmp_path / "one", quiet=True, threshold=0.4)
    coco = json.loads((one / "objects.coco.json").read_text())
    rows = parquet.read_table(folder).to_pylist()
    assert [(r["path"], r["height"], r["width"]) for r in rows] == [
        (picture["file_name"], picture["height"], picture["width"]) for picture in coco["images"]
    ]
    assert {row["shard"] for row in rows} == {"s-000.tar", "s-001.tar"}
    assert all((one / "masks" / f"{row['path']}.png").read_bytes() == row["mask"] for row in rows)
    mine = [{**found, "image_id": i} for i, row in enumerate(rows, start=1) for found in row["objects"]]
    kept = ("segmentation", "area", "bbox", "image_id")
    assert len(mine) > 50
    assert [[one[k] for k in kept] for one in mine] == [[one[k] for k in kept] for one in coco["annotations"]]
    assert np.allclose([one["score"] for one in mine], [one["score"] for one in coco["annotations"]], atol=1e-6)


def test_broken_pictures_and_shards_are_named_and_the_rest_is_done(
    ray: Any, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [tmp_path / f"{name}.tar" for name in "abc"]
    write_tar(data[0], {**pictures(0, 3), "bad.jpg": b"<html>", "notes.txt": b"x"})
    data[1].write_bytes(b"no tar" * 1000)
    write_tar(data[2], {"broken.jpg": b"\xff\xd8\xff"})
    with pytest.raises(DataError, match=r"1 of 3 parts could not be read:\n.*b\.tar.* is not a whole tar") as error:
        cluster.embed(run, data, tmp_path / "out", workers=2)
    assert error.value.exit_code == EXIT_DATA
    assert "skipped 2 of 5 pictures" in (said := capsys.readouterr().err) and "bad: an HTML page" in said
    footers = [parquet.read_metadata(tmp_path / "out" / f"part-0000{i}.parquet") for i in (0, 2)]
    assert [footer.num_rows for footer in footers] == [3, 0]
    assert json.loads(footers[1].metadata[cluster.MARK])["bad"][0][0] == "broken"
    assert not json.loads((tmp_path / "out" / cluster.MANIFEST).read_text())["finished"]
    kept = parts_of(tmp_path / "out")
    write_tar(data[1], pictures(9, 2))
    cluster.embed(run, data, tmp_path / "out", workers=2, quiet=True)
    assert read_embeddings(tmp_path / "out")[0] == [f"{i:06d}" for i in (0, 1, 2, 9, 10)]
    assert kept.items() <= parts_of(tmp_path / "out").items()


# --- without a cluster ---


def task_of(run: Path, data: Any, out: Path, **changes: Any) -> cluster.Task:
    out.mkdir(exist_ok=True)
    return replace(cluster.Task("embed", str(run), data, str(out), 32), **changes)


def test_other_data_is_cut_into_parts_of_whole_batches(run: Path, tmp_path: Path) -> None:
    assert cluster.PART_PICTURES % apply.BATCH == 0
    data = tmp_path / "pictures.npz"
    np.savez(data, images=np.random.default_rng(0).integers(0, 256, (2100, 8, 8, 3), np.uint8))
    parts = cluster.plan(str(data), "x")
    assert [(part.first, part.stop) for part in parts] == [(0, 1024), (1024, 2048), (2048, 2100)]
    worker = cluster.Worker(asdict(task_of(run, str(data), tmp_path / "out")))
    (told,) = worker({name: np.array([value]) for name, value in asdict(parts[2]).items()})["count"]
    assert json.loads(told)["pictures"] == 52
    names, vectors = read_embeddings(tmp_path / "out" / parts[2].file)
    assert names == open_data(str(data)).keys[2048:]
    whole = read_embeddings(apply.embed(run, data, tmp_path / "one.npz", quiet=True))[1]
    assert np.array_equal(vectors, whole[2048:])


def test_tars_are_not_opened_to_plan(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"s{number}.tar").write_bytes(b"not looked at")
    for data in (tmp_path, str(tmp_path / "s*.tar"), [tmp_path / f"s{i}.tar" for i in range(3)]):
        parts = cluster.plan(data, "x")
        assert [Path(part.shard).name for part in parts] == ["s0.tar", "s1.tar", "s2.tar"]
    before = {part.state for part in parts}
    assert len(before) == 3 and {part.state for part in cluster.plan(tmp_path, "y")}.isdisjoint(before)
    (tmp_path / "s1.tar").write_bytes(b"changed since")
    assert len(before & {part.state for part in cluster.plan(tmp_path, "x")}) == 2


def test_memory_does_not_grow_with_the_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tracemalloc

    class Blank(ArraySource):
        """As many pictures as wanted, made when asked for."""

        def __init__(self, count: int) -> None:
            super().__init__(np.zeros((1, 256, 256, 3), np.uint8))
            self.keys = [f"{i:06d}" for i in range(count)]

        def image(self, i: int) -> np.ndarray:
            return np.full((256, 256, 3), i % 256, np.uint8)

    class Wide:
        def embed(self, images: list[np.ndarray]) -> np.ndarray:
            return np.stack([np.full(4096, image[0, 0, 0], np.float32) for image in images])

    monkeypatch.setattr(cluster, "GROUP_ROWS", 64)
    peaks = []
    for count in (256, 2560):
        task = task_of(tmp_path, "blank", tmp_path / "out")
        source = Blank(count)
        tracemalloc.start()
        done = cluster.write_part(Wide(), task, cluster.Part(0, "", 0, count, "s"), source, tmp_path / "out" / "p.parquet")  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert done.pictures == count
    # A batch has 6.3 MB; what may grow is the index of the part, its keys and names.
    assert peaks[1] < 1.25 * peaks[0], peaks


def test_a_worker_tells_errors_and_does_not_write_twice(run: Path, tmp_path: Path) -> None:
    worker = cluster.Worker(asdict(task_of(run, [], tmp_path / "out")))
    part = cluster.Part(0, str(tmp_path / "gone.tar"), 0, 0, "s")
    told = json.loads(worker({name: np.array([value]) for name, value in asdict(part).items()})["count"][0])
    assert "gone.tar" in told["error"] and told["exit_code"] == EXIT_DATA
    write_tar(tmp_path / "a.tar", pictures(0, 2))
    part = replace(part, shard=str(tmp_path / "a.tar"))
    first = worker.work(part)
    stamp = (tmp_path / "out" / part.file).stat().st_mtime_ns
    assert worker.work(part) == first and (tmp_path / "out" / part.file).stat().st_mtime_ns == stamp
    worker.work(replace(part, state="other weights"))
    assert (tmp_path / "out" / part.file).stat().st_mtime_ns != stamp
    lost = cluster.Worker(asdict(task_of(tmp_path / "no run", [], tmp_path / "out")))
    told = json.loads(lost({name: np.array([value]) for name, value in asdict(replace(part, number=9)).items()})["count"][0])
    with pytest.raises(RunError, match="no run"):
        cluster._Progress("embed", 1, True).take([cluster.Count(**told)])


def test_a_folder_of_another_command_is_left_alone(run: Path, cut: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    identity = {"verb": "embed", "weights": "x"}
    out.mkdir()
    cluster._claim(out, identity)
    cluster._claim(out, identity)
    with pytest.raises(RunError, match="its weights is x, asked for is y"):
        cluster._claim(out, {**identity, "weights": "y"})
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files, e.g. (notes.txt|out)"):
        cluster._claim(tmp_path, identity)
    weights = [cluster._weights(apply.load_capable(run), "embed"), cluster._weights(apply.load_capable(cut), "segment")]
    assert weights[0] == cluster._weights(apply.load_capable(cut), "embed") != weights[1]


def test_what_cannot_be_sent_or_written_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot send a ndarray"):
        cluster.embed(run, np.zeros((2, 8, 8, 3), np.uint8), tmp_path / "out")
    with pytest.raises(ConfigError, match="names a file"):
        cluster.embed(run, "sample:things:8", tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match="threshold is 2"):
        cluster.segment(run, "sample:things:8", tmp_path / "out", threshold=2)
    with pytest.raises(ConfigError, match="at least 1"):
        cluster.embed(run, "sample:things:8", tmp_path / "out", workers=0)
    with pytest.raises(RunError, match="has not learned to segment"):
        cluster.segment(run, "sample:things:8", tmp_path / "out")


def test_a_cluster_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        @staticmethod
        def init(**options: Any) -> None:
            assert options["address"] == "ray://head:10001" and "num_cpus" not in options
            raise Exception("The current node timed out during startup.")

    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(RunError, match=r"(?s)the cluster at ray://head:10001.*why: The current node timed out"):
        cluster._start(Busy, 2)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r'pip install "selftaught\[cluster\]"'):
        cluster.embed(run, "sample:things:8", tmp_path / "out")
