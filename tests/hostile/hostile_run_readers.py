"""Fuzzers of what a run folder and the cache hold: checkpoints, JSON files, metrics."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hostile_mutations import damage, damage_json, damage_value
from torch import nn

from selftaught.core import checkpoint
from selftaught.core.config import from_json, to_json
from selftaught.core.errors import DataError, RunError
from selftaught.core.guards import Collapse, RunLock
from selftaught.core.record import Recorder
from selftaught.core.tune import Plan
from selftaught.data import cache
from selftaught.data.arrays import ArraySource
from selftaught.data.cache import build_cache
from selftaught.learn import Stage, kept_stages
from selftaught.loading import load_method, read_run
from selftaught.registry import load_class
from selftaught.report.collect import verdict
from selftaught.report.plots import curve_svg, read_curves
from selftaught.train import Loop, base_config

Case = Callable[[random.Random], None]


def learner() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    opt = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    opt.step()
    return model, opt


def fuzz_checkpoint(folder: Path) -> Case:
    model, opt = learner()
    tensors, meta = checkpoint.flatten_optimizer(opt)
    collapse = Collapse(10)
    for step in range(25):
        collapse.update(step, {"loss": 1.0 / (step + 1)})
    state = {
        "step": 7, "optimizers": {"main": meta}, "collapse": collapse.to_json(), "skips": 0, "verdict": "slow", "reason": ".",
        "pictures": "a mark",
    }  # fmt: skip
    whole = checkpoint.save(folder / "whole", 7, {"model": model.state_dict(), "optim.main": tensors}, state)
    good = {path.name: path.read_bytes() for path in whole.iterdir()}
    place = folder / "run" / whole.name
    place.mkdir(parents=True)

    def sign(files: dict[str, bytes]) -> bytes:
        entries = {name: checkpoint._write(place / name, data) for name, data in files.items() if name != "manifest.json"}
        return checkpoint._manifest_bytes({"schema": 1, "step": 7, "files": entries})

    def case(draw: random.Random) -> None:
        files = dict(good)
        name = draw.choice(sorted(files))
        files[name] = (damage_json if name.endswith(".json") else damage)(files[name], draw)
        signed = name != "manifest.json" and draw.random() < 0.7
        if signed:  # whoever writes a checkpoint can also write its manifest
            files["manifest.json"] = sign(files)
        elif name == "manifest.json" and draw.random() < 0.5:
            try:
                files[name] = checkpoint._manifest_bytes(json.loads(files[name]))
            except (ValueError, RecursionError, AttributeError):
                pass
        for each, data in files.items():
            (place / each).write_bytes(data)
        found = checkpoint.latest(place.parent, lambda text: None)
        assert signed or found is None or files == good or name == "manifest.json", "damage that nobody noticed"
        if found is None:
            raise RunError("none is good")
        fresh, optimizer = learner()
        loop = SimpleNamespace(
            method=fresh, optimizers={"main": optimizer}, collapse=Collapse(10), pictures="a mark", recorder=SimpleNamespace(say=str),
            job=SimpleNamespace(out=place, to_json=lambda: {"data": "<array>"}),
        )  # fmt: skip
        Loop.restore(loop, found)  # type: ignore[arg-type]
        assert all(bool(torch.isfinite(p).all()) for p in fresh.parameters())

    return case


def fuzz_config(folder: Path) -> Case:
    run, cls = folder / "run", load_class("simclr")
    config = base_config("simclr", "tiny", "sample:things")
    method = cls(config, {})
    checkpoint.save(run / "checkpoints", 1, {"model": method.state_dict()}, {"step": 1})
    saved = {"schema": 1, "method": "simclr", "size": "tiny", "seed": 0, "data": "sample:things", "config": to_json(config),
             "needs": {}, "device": "cpu", "versions": {"torch": "2"}}  # fmt: skip
    text = json.dumps(saved).encode()

    def case(draw: random.Random) -> None:
        if draw.random() < 0.3:
            (run / "config.json").write_bytes(json.dumps({**saved, "needs": {"features": draw.choice((".", "..", "\0", "/"))}}).encode())
        else:
            (run / "config.json").write_bytes(damage_json(text, draw))
        if draw.random() < 0.1:
            load_method(run)
        else:
            made = read_run(run)
            from_json(load_class(made.method).Config, made.config)

    return case


def fuzz_learn(folder: Path) -> Case:
    stages = {name: base_config(method, "tiny", "x") for name, method in (("features", "simclr"), ("masks", "selfmask"))}
    asked = {"schema": 1, "size": "tiny", "seed": 0, "minutes": None, "features": "simclr", "need": [], "data": "/pictures"}
    text = json.dumps({"data": "/pictures", "asked": asked, "stages": {k: to_json(c) for k, c in stages.items()}}).encode()

    def case(draw: random.Random) -> None:
        (folder / "learn.json").write_bytes(damage_json(text, draw))
        kept = kept_stages(asked, Stage("simclr", stages["features"]), folder)
        assert {"features"} <= set(kept) <= {"features", "masks"}

    return case


def fuzz_plan(folder: Path) -> Case:
    from dataclasses import asdict

    text = json.dumps(asdict(Plan("bf16", "plain", True, "fastest"))).encode()
    loop: Any = SimpleNamespace(job=SimpleNamespace(out=folder))

    def case(draw: random.Random) -> None:
        (folder / "plan.json").write_bytes(damage_json(text, draw))
        plan = Loop.choose_plan(loop)
        assert plan.precision in ("fp32", "bf16") and plan.attention in ("fused", "plain")
        plan.apply(nn.Conv2d(1, 1, 1))

    return case


def fuzz_metrics(folder: Path) -> Case:
    rows = [{"step": i, "loss": 1 / (i + 1), "a": {"b": i}, "lr": None, "health": "learning"} for i in range(1, 9)]
    lines = [json.dumps(row).encode() for row in rows]
    path = folder / "metrics.jsonl"

    def case(draw: random.Random) -> None:
        changed = list(lines)
        at = draw.randrange(len(changed))
        changed[at] = damage_json(changed[at], draw)
        path.write_bytes(b"\n".join(changed) + draw.choice((b"\n", b"")))
        if draw.random() < 0.5:  # a run that goes on mends what it finds
            Recorder(folder, 10, quiet=True).rewind(6)
            assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().split(b"\n")[:-1])
        curves = read_curves(path)
        verdict("features", curves)
        for steps, values in [c for name, c in curves.items() if name != "health"] if draw.random() < 0.04 else []:
            curve_svg(steps, values, mark="m", alt="a", health=curves.get("health"))

    return case


def fuzz_lock(folder: Path) -> Case:
    lock = RunLock(folder)
    with lock:
        text = lock.path.read_bytes()

    def case(draw: random.Random) -> None:
        lock.path.write_bytes(damage_json(text.replace(b'"birth"', draw.choice((b'"birth"', b'"x"'))), draw))
        with RunLock(folder):
            pass

    return case


def pictures() -> ArraySource:
    return ArraySource(np.random.default_rng(0).integers(0, 255, (30, 4, 4, 3)).astype(np.uint8), name="noise")


def same_cache(source: ArraySource, root: Path) -> None:
    """Build or open the cache; whatever was in its place, the pictures and their names must be those of the source.

    Only the original sizes, which serve the report, may be others when an index was changed into another that is whole.
    """
    images = build_cache(source, 4, cache_dir=root)
    assert images.keys == source.keys and images.sizes.shape == (len(source), 2) and (images.sizes > 0).all()
    assert all((images.images[i].transpose(1, 2, 0) == source.images[i]).all() for i in range(len(source)))
    assert list(images.source_index) == list(range(len(source)))


def fuzz_index(folder: Path) -> Case:
    source = pictures()
    where = build_cache(source, 4, cache_dir=folder).folder
    text, pixels = (where / "index.json").read_bytes(), (where / "images.u8").read_bytes()

    def case(draw: random.Random) -> None:
        index = json.loads(text)
        few = {name: value[:6] if isinstance(value, list) else value for name, value in index.items()}
        part = damage_value(few, draw) if draw.random() < 0.3 else None
        changed = json.dumps({**index, **part}).encode() if isinstance(part, dict) else damage_json(text, draw)
        where.mkdir(exist_ok=True)
        (where / "images.u8").write_bytes(pixels)
        (where / "index.json").write_bytes(changed)
        same_cache(source, folder)
        if (where / "index.json").read_bytes() != changed:
            raise DataError("it was made again")

    return case


def fuzz_journal(folder: Path) -> Case:
    source = pictures()
    cache._CHUNK = 8  # so that a few pictures make several entries

    class Interrupted(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done >= 25:
            raise Interrupted

    try:
        build_cache(source, 4, cache_dir=folder / "first", report=stop)
    except Interrupted:
        pass
    (partial,) = (folder / "first").glob(".partial-*")
    lines = (partial / "journal.jsonl").read_bytes()
    assert lines.count(b"\n") >= 2
    pixels = (partial / "images.u8").read_bytes()

    def case(draw: random.Random) -> None:
        root = folder / "cache"
        shutil.rmtree(root, ignore_errors=True)
        (root / partial.name).mkdir(parents=True)
        changed = lines.splitlines()
        at = draw.randrange(len(changed))
        changed[at] = damage_json(changed[at], draw)
        (root / partial.name / "journal.jsonl").write_bytes(b"\n".join(changed) + draw.choice((b"\n", b"")))
        (root / partial.name / "images.u8").write_bytes(pixels[: draw.choice((len(pixels), 0, 100, 48 * 8))])
        same_cache(source, root)

    return case


READERS: dict[str, Callable[[Path], Case]] = {
    "checkpoint": fuzz_checkpoint, "config.json": fuzz_config, "learn.json": fuzz_learn, "plan.json": fuzz_plan,
    "metrics.jsonl": fuzz_metrics, "lock.json": fuzz_lock, "index.json": fuzz_index, "journal.jsonl": fuzz_journal,
}  # fmt: skip
