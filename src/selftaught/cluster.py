"""Bulk `embed` and `segment` on a cluster through Ray Data: one Parquet file per tar shard, restartable.

    driver   lists the parts (a tar shard each, or 1,024 pictures of other data), leaves out those that are finished
    Ray      gives each part to a worker of a pool; what a lost worker was doing is given to another one
    worker   walks through its part batch by batch, writes part-00012.parquet beside its place, renames it

No picture passes through Ray: the name of a part goes out, its counts come back. So the memory of a worker depends on one batch
and on the index of one shard, and not on how many pictures there are. A finished part says in its own footer what it was
made of; the same command again does only what is missing, whatever the number of workers. Folder and data must be
reachable under the same names from all machines (a shared disk, or URLs).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from selftaught.apply import (
    BATCH,
    LINE_EVERY_S,
    Learned,
    Walk,
    check_fractions,
    load_capable,
    none_readable,
    objects_in,
    print_skipped,
)
from selftaught.core.atomic import replacing
from selftaught.core.config import digest, read_json, write_json
from selftaught.core.errors import EXIT_DATA, EXIT_USAGE, ConfigError, DataError, RunError, SelftaughtError
from selftaught.core.guards import RunLock
from selftaught.data.archives import tar_state
from selftaught.data.base import Source, Subset
from selftaught.data.sources import open_data, tar_shards
from selftaught.report import exports

SCHEMA = 1
PART_PICTURES = 1024
"""Pictures per part of data that is not in tar shards; a multiple of the batch, so that batches are those of one process."""
GROUP_ROWS = 512
"""Rows that a worker holds before it writes them to its file."""
STORE_BYTES = 128 * 2**20
"""Ray's object store on one machine: it holds counts only."""
MANIFEST = "_manifest.json"
"""What begins with an underscore is left out by readers of a folder of Parquet files."""
MARK = b"selftaught"
NAMED = 10


@dataclass(frozen=True)
class Task:
    """What is asked for, as plain values: workers get it once."""

    verb: Literal["embed", "segment"]
    run: str
    data: Any
    out: str
    batch: int
    threshold: float = 0.5
    min_area: float = 0.001


@dataclass(frozen=True)
class Part:
    """One output file: a whole tar shard, or the pictures `first` to `stop` - 1 of other data."""

    number: int
    shard: str
    first: int
    stop: int
    state: str
    """Digest of the verb, the weights, the settings and the input: a file that bears another one is made anew."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.shard or f"pictures {self.first} to {self.stop - 1}"

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"part-{self.number:05d}.parquet"


@dataclass
class Count:
    """What became of a part: pictures written and broken, all broken ones by name in its file, the first of them here."""

    number: int
    pictures: int = 0
    bad: int = 0
    named: list[tuple[str, str]] = field(default_factory=list)
    error: str = ""
    exit_code: int = 0


def embed(
    run: str | Path, data: Any, out: str | Path, *, workers: int | None = None, batch: int = BATCH, quiet: bool = False
) -> Path:
    """Write one feature vector per picture to the folder `out`: part-*.parquet with shard, path, embedding (D float32).

    workers: processes with one processor each; None takes all that the cluster has. The cluster is the one of $RAY_ADDRESS or
    of `ray.init`, else this machine. Raises SelftaughtError; parts that are finished by then stay.
    """
    return _spread(Task("embed", os.path.realpath(os.path.expanduser(run)), _named(data), _folder(out), batch), workers, quiet)


def segment(
    run: str | Path,
    data: Any,
    out: str | Path,
    *,
    threshold: float = 0.5,
    min_area: float = 0.001,
    workers: int | None = None,
    batch: int = BATCH,
    quiet: bool = False,
) -> Path:
    """Write part-*.parquet to the folder `out`: shard, path, height, width, mask (8-bit PNG of the soft mask), objects.

    objects: list of {segmentation, area, bbox, score} as in COCO; the run lengths are of the picture's size. The rest as `embed`.
    """
    check_fractions(threshold=threshold, min_area=min_area)
    task = Task("segment", os.path.realpath(os.path.expanduser(run)), _named(data), _folder(out), batch, threshold, min_area)
    return _spread(task, workers, quiet)


# --- the driver ---


def _spread(task: Task, workers: int | None, quiet: bool) -> Path:
    ray = _ray()
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}.", expected="at least 1")
    weights = _weights(load_capable(task.run, task.verb), task.verb)
    identity = {
        "schema": SCHEMA, "verb": task.verb, "weights": weights, "batch": task.batch,
        "threshold": task.threshold, "min_area": task.min_area,
    }  # fmt: skip
    parts = plan(task.data, digest(identity))
    out = Path(task.out)
    with RunLock(out / "_work"):
        _claim(out, {**identity, "data": task.data if isinstance(task.data, str) else len(task.data), "parts": len(parts),
                     "shards": digest([part.name for part in parts])})  # fmt: skip
        finished = [count for part in parts if (count := read_part(out / part.file, part)) is not None]
        progress = _Progress(task.verb, len(parts), quiet)
        progress.take(finished)
        if len(finished) < len(parts):
            done = {count.number for count in finished}
            progress.take(_counts(ray, task, [part for part in parts if part.number not in done], workers))
        _finish(out, parts, progress)
    return out


def plan(data: Any, identity: str) -> list[Part]:
    """Cut data into parts: a function of the data alone, so that it is the same at every start.

    Tars are not opened here: a set of any size costs one look at each file's size and time.
    """
    shards = tar_shards(data)
    if shards:
        return [Part(i, s, 0, 0, digest([identity, s, tar_state(s)])) for i, s in enumerate(shards)]
    source = open_data(data)
    state, total = source.fingerprint(), len(source)
    starts = range(0, total, PART_PICTURES)
    return [
        Part(i, "", at, min(at + PART_PICTURES, total), digest([identity, state, at])) for i, at in enumerate(starts)
    ]


def _counts(ray: Any, task: Task, parts: list[Part], workers: int | None) -> Iterator[Count]:
    """Work on the parts on the cluster; yields their counts in the order in which they are finished."""
    mine = not ray.is_initialized()
    if mine:
        _start(ray, workers)
    quieter = logging.getLogger("ray.data")
    level = quieter.level
    quieter.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        size = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(parts))
        # One task at a time per worker: a queue at a slow worker would make the others wait at the end.
        pool = ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1)
        rows = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=min(len(parts), 10_000))
        done = rows.map_batches(
            Worker, fn_constructor_args=(asdict(task),), batch_size=1, batch_format="numpy", compute=pool, num_cpus=1
        )
        for row in done.iter_rows():
            yield Count(**json.loads(row["count"]))
    finally:
        context.enable_progress_bars = bars
        quieter.setLevel(level)
        if mine:
            ray.shutdown()


def _start(ray: Any, workers: int | None) -> None:
    """Join the cluster of $RAY_ADDRESS, or start one of this machine's processors; nothing is reported to anyone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        options |= {"num_cpus": workers or os.cpu_count() or 1, "object_store_memory": STORE_BYTES}
        options |= {"include_dashboard": False}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises a bare one when a machine is too busy to answer within its 30 s
        where = f"the cluster at {address}" if address else "a cluster on this machine"
        raise RunError(f"Ray cannot start work on {where}.", why=str(error), do="Look at `ray status`, or try again later.") from error


class _Progress:
    """Adds up the counts, says how far the work is, and keeps what could not be read."""

    def __init__(self, verb: str, total: int, quiet: bool) -> None:
        self.verb, self.total, self.quiet = verb, total, quiet
        self.counts: dict[int, Count] = {}
        self.unread: dict[int, str] = {}
        self.shown = time.monotonic()

    def take(self, counts: Iterable[Count]) -> None:
        """Take counts as they come; an error that is not about one part's data ends the work."""
        for count in counts:
            if count.error and count.exit_code != EXIT_DATA:
                raise RunError(count.error, exit_code=count.exit_code)
            if count.error:
                self.unread[count.number] = count.error
            else:
                self.counts[count.number] = count
            self.say()

    def say(self) -> None:
        """A line on stderr now and then."""
        if not self.quiet and (sys.stderr.isatty() or time.monotonic() - self.shown >= LINE_EVERY_S):
            self.shown = time.monotonic()
            done, pictures = len(self.counts) + len(self.unread), sum(c.pictures for c in self.counts.values())
            end = "\r" if sys.stderr.isatty() and done < self.total else "\n"
            print(f"{self.verb}: {done} of {self.total} parts, {pictures} pictures", end=end, file=sys.stderr)


def _claim(out: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that the folder is of the same command."""
    path = out / MANIFEST
    if not path.exists():
        others = [entry.name for entry in out.iterdir() if entry.name != "_work"] if out.is_dir() else []
        if others:
            raise RunError(f"{out} holds other files, e.g. {others[0]}.", expected="a new or empty folder")
        write_json(path, {**manifest, "finished": False})
        return
    held = read_json(path)
    for key, value in manifest.items():
        if held.get(key) != value:
            raise RunError(
                f"{out} holds the output of another command: its {key} is {held.get(key)}, asked for is {value}.",
                do="Choose another --out.",
            )


def _finish(out: Path, parts: list[Part], progress: _Progress) -> None:
    """Write the totals, remove what lost workers left, and say what could not be read."""
    for left in out.glob(".tmp-*.parquet"):
        left.unlink(missing_ok=True)
    counts = [progress.counts[number] for number in sorted(progress.counts)]
    pictures, bad = sum(c.pictures for c in counts), sum(c.bad for c in counts)
    named = [one for count in counts for one in count.named]
    held = read_json(out / MANIFEST)
    files = [
        {"file": parts[c.number].file, "of": parts[c.number].name, "pictures": c.pictures, "bad": c.bad} for c in counts
    ]
    totals = {"pictures": pictures, "bad": bad, "unread": {parts[n].name: e for n, e in progress.unread.items()}}
    write_json(out / MANIFEST, {**held, **totals, "finished": not progress.unread, "files": files})
    if bad and not progress.quiet and pictures:
        print_skipped(bad, pictures + bad, named)
    if progress.unread:
        shown = [f"  {error}" for _, error in sorted(progress.unread.items())[:NAMED]]
        raise DataError(
            "\n".join([f"{len(progress.unread)} of {len(parts)} parts could not be read:", *shown]),
            do=f"Mend them and give the same command again: the {len(counts)} finished parts in {out} are kept.",
            exit_code=EXIT_DATA,
        )
    if not pictures:
        raise none_readable(bad, named)


# --- the workers ---


class Worker:
    """One process of the cluster: opens the run once, then writes part after part; Ray gives it one part per call."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = Task(**task)
        self.learned: Learned | None = None
        self.source: Source | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Part's fields, one value each, to its count as JSON. An error a person can mend is told, not raised."""
        row = {name: values[0] for name, values in batch.items()}
        number, first, stop = int(row["number"]), int(row["first"]), int(row["stop"])
        part = Part(number, str(row["shard"]), first, stop, str(row["state"]))
        try:
            count = self.work(part)
        except SelftaughtError as error:
            code = EXIT_DATA if isinstance(error, DataError) and error.exit_code == EXIT_USAGE else error.exit_code
            count = Count(part.number, error=f"{part.name}: {error}", exit_code=code)
        return {"count": [json.dumps(asdict(count))]}

    def work(self, part: Part) -> Count:
        """Write a part, unless a process that was lost had written it already."""
        path = Path(self.task.out) / part.file
        written = read_part(path, part)
        if written is not None:
            return written
        if self.learned is None:
            import torch

            torch.set_num_threads(1)  # there is one worker per processor
            self.learned = load_capable(self.task.run, self.task.verb)
        return write_part(self.learned, self.task, part, self._open(part), path)

    def _open(self, part: Part) -> Source:
        if part.shard:
            return open_data([part.shard])
        if self.source is None:
            self.source = open_data(self.task.data)
        return Subset(self.source, range(part.first, part.stop))


def write_part(learned: Learned, task: Task, part: Part, source: Source, path: Path) -> Count:
    """Walk through the pictures of a part and write their rows; the file appears when it is whole."""
    import pyarrow
    from pyarrow import parquet

    walk = Walk(source, task.verb, task.batch, quiet=True)
    shard = PurePosixPath(part.shard.replace("\\", "/")).name
    schema, rows_of = (_embeddings if task.verb == "embed" else _objects)(learned, task)
    with replacing(path) as temp:
        with parquet.ParquetWriter(temp, schema, write_page_checksum=True, compression="zstd") as writer:
            rows: list[dict[str, Any]] = []
            for numbers, images in walk.batches():
                found = zip(numbers, rows_of(images), strict=True)
                rows += [{"shard": shard, "path": _utf8(walk.names[i]), **row} for i, row in found]
                if len(rows) >= GROUP_ROWS:
                    writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows = []
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            about = {"state": part.state, "of": part.name, "pictures": len(walk.names), "bad": walk.bad}
            writer.add_key_value_metadata({MARK: json.dumps(about).encode("ascii")})
    return Count(part.number, len(walk.names), len(walk.bad), walk.bad[:NAMED])


def read_part(path: Path, part: Part) -> Count | None:
    """What the footer of a finished part says; None when there is no whole file, or it was made of something else."""
    import pyarrow
    from pyarrow import parquet

    try:
        about = json.loads((parquet.read_metadata(path).metadata or {})[MARK])
        if about["state"] != part.state:
            return None
        bad = [(str(key), str(reason)) for key, reason in about["bad"]]
        return Count(part.number, int(about["pictures"]), len(bad), bad[:NAMED])
    except (OSError, pyarrow.ArrowException, ValueError, KeyError, TypeError):
        return None


def _embeddings(learned: Learned, task: Task) -> tuple[Any, Any]:
    """Columns of an embedding, and the function from pictures to rows."""
    import pyarrow as pa

    # Asked of a blank picture, so that a part without a readable one has the same columns.
    width = learned.embed([np.zeros((8, 8, 3), np.uint8)]).shape[1]
    columns = [("shard", pa.string()), ("path", pa.string()), ("embedding", pa.list_(pa.float32(), width))]
    return pa.schema(columns), lambda images: [{"embedding": vector} for vector in learned.embed(images)]


def _objects(learned: Learned, task: Task) -> tuple[Any, Any]:
    """Columns of a segmentation, and the function from pictures to rows."""
    import pyarrow as pa

    found = pa.struct([("segmentation", pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.string())])),
                       ("area", pa.int64()), ("bbox", pa.list_(pa.int32(), 4)), ("score", pa.float32())])  # fmt: skip
    columns = [("shard", pa.string()), ("path", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
               ("mask", pa.binary()), ("objects", pa.list_(found))]  # fmt: skip

    def rows(images: list[Any]) -> Iterator[dict[str, Any]]:
        masks = learned.segment(images)
        every = objects_in(learned, images, masks, task.threshold, task.min_area)
        for image, soft, objects in zip(images, masks, every, strict=True):
            height, width = image.shape[:2]
            yield {
                "height": height, "width": width, "mask": exports.mask_png(soft, (height, width)),
                "objects": [exports.coco_object(one.mask, one.score) for one in objects],
            }  # fmt: skip

    return pa.schema(columns), rows


# --- what is asked for, checked ---


def _ray() -> Any:
    try:
        import pyarrow.parquet  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise RunError(
            "--engine ray needs Ray and pyarrow, which are not installed.",
            why=str(error),
            do='pip install "selftaught[cluster]", or leave --engine away',
        ) from error
    return ray


def _folder(out: str | Path) -> str:
    path = Path(out).expanduser().resolve()
    if path.is_file() or path.suffix.lower() in (".npz", ".parquet"):
        raise ConfigError(f"'{out}' names a file.", expected="a folder: --engine ray writes part-00000.parquet and so on")
    return str(path)


def _named(data: Any) -> Any:
    """Data as names that a worker can open: whatever has no name lives in this process only."""
    if isinstance(data, (list, tuple)) and data and all(isinstance(item, (str, os.PathLike)) for item in data):
        return [_named(item) for item in data]
    if isinstance(data, os.PathLike):
        data = os.fspath(data)
    if not isinstance(data, str):
        raise ConfigError(
            f"--engine ray cannot send a {type(data).__name__} to its workers.", expected="a path, a URL, or a list of them"
        )
    return data if "://" in data or data.startswith("sample:") else os.path.abspath(os.path.expanduser(data))


def _weights(learned: Learned, verb: str) -> str:
    """Hex digest of all numbers that the answer depends on: the method's and those of the runs it needs."""
    state = hashlib.sha256()
    waiting = [learned.provider(verb)]
    while waiting:
        method = waiting.pop()
        state.update(f"{method.name}{digest(method.config)}".encode())
        for name, tensor in sorted(method.state_dict().items()):
            state.update(name.encode() + tensor.contiguous().numpy().tobytes())
        waiting += [given for _, given in sorted(method.given.items())]
    return state.hexdigest()[:16]


def _utf8(name: str) -> str:
    """A name as Parquet can hold it: bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()
