"""Numbers going wrong in training: nothing of such a step stays, it is captured and replayed, and the counts are exact.

The guards themselves are in core/test_guards.py; odd data are in test_odd_data.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selftaught import cli, registry, representation
from selftaught.core import capture, checkpoint
from selftaught.core.errors import ConfigError, NumericError, RunError
from selftaught.core.trace import Trace
from selftaught.method import Method, Player, TrainConfig
from selftaught.replay import replay
from selftaught.train import Loop, Stopped, resume, train
from trained_runs import as_clips

LOOP = sys.modules["selftaught.train"]  # the package's attribute of that name is the function
NAN = float("nan")
TRAINED = [name for name in registry.methods() if registry.load_class(name).sizes["tiny"].steps]
STEPS = 6
BAD = {0, 2, STEPS - 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    images = np.random.default_rng(0).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8)
    np.savez(path, images=images, clips=as_clips(images))
    return path


@pytest.fixture(scope="module")
def given(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a method may need, already learned: name -> "name=RUN"."""
    root = tmp_path_factory.mktemp("given")
    features = f"features={start('simclr', data, root / 'features', 2)}"
    masks = f"masks={start('tokencut', data, root / 'masks', 0, need=(features,))}"
    pose = f"pose={start('unsup3d', data, root / 'pose', 2)}"
    generator = f"generator={start('shape_gan', data, root / 'generator', 2, need=(pose,))}"
    inpainter = f"inpainter={start('mae', data, root / 'inpainter', 2)}"
    return {"features": features, "masks": masks, "inpainter": inpainter, "pose": pose, "generator": generator}


def start(method: str, data: Path, out: Path, steps: int = STEPS, *more: str, need: tuple[str, ...] = ()) -> Path:
    return train(method, data, out, size="tiny", steps=steps, set=["batch_size=8", *more], need=need, quiet=True)


def state_of(loop: Loop) -> dict[str, Tensor]:
    """Copies of all weights, buffers, averages and moments."""
    tensors, _ = loop.contents(list(loop.optimizers))
    tensors["buffers"] = dict(loop.method.named_buffers())  # those too that are not saved
    return {f"{part}/{name}": value.clone() for part, group in tensors.items() for name, value in group.items()}


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(v.numpy().tobytes() == b[k].numpy().tobytes() for k, v in a.items())


def newest(run: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    folder = checkpoint.latest(run / "checkpoints")
    assert folder is not None
    tensors, state = checkpoint.load(folder)
    return {f"{part}/{name}": value for part, group in tensors.items() for name, value in group.items()}, state


@contextmanager
def watching() -> Iterator[list[bool]]:
    """Collect of every step whether it left the whole state as it was."""
    one_step, stayed = Loop.one_step, list[bool]()

    def watched(self: Loop) -> None:
        before = state_of(self)
        one_step(self)
        stayed.append(same_bits(before, state_of(self)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "one_step", watched)
        yield stayed


def spoil(method: Method, total: Tensor, where: str) -> Tensor:
    """The loss with something wrong in it, or in what it leaves behind."""
    parameter = next(p for p in method.parameters() if p.requires_grad)
    if where == "loss is NaN":
        return total * NAN
    if where == "loss is infinite":
        return total + float("inf")
    if where == "buffer":
        next(b for b in method.buffers() if b.is_floating_point() and b.numel()).view(-1)[-1] = float("inf")
        return total
    wrong = {"one gradient": lambda g: g.index_fill(0, torch.tensor(0), NAN), "gradient norm": lambda g: g + 1e20}[where]
    seed = parameter.flatten() * 1.0
    seed.register_hook(wrong)
    return total + 0 * seed.sum()


@contextmanager
def spoiling(method: type[Method], bad: Callable[[int], bool], where: str) -> Iterator[None]:
    """Make the numbers of some steps go wrong."""
    loss, prepare, step = method.loss, method.prepare, [-1]

    def prepared(self: Method, images: Tensor, indices: Any) -> Any:
        batch = prepare(self, images, indices)
        if where == "input" and bad(step[0]):
            parts = list(batch.values()) if isinstance(batch, dict) else batch if isinstance(batch, (list, tuple)) else [batch]
            parts[0][0, 0, ..., 5, 5] = NAN  # one number of the pictures that the network sees
        return batch

    def spoiled(self: Method, batch: Any, player: str, progress: Any) -> Any:
        total, parts = loss(self, batch, player, progress)
        return (spoil(self, total, where) if bad(progress.step) and where != "input" else total), parts

    def one_step(self: Loop, before: Any = Loop.one_step) -> None:
        step[0] = self.step
        before(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "prepare", prepared)
        patch.setattr(method, "loss", spoiled)
        patch.setattr(Loop, "one_step", one_step)
        yield


KINDS = {"input": "", "loss is NaN": "loss", "loss is infinite": "loss", "one gradient": "gradient of",
         "gradient norm": "norm of the gradients", "buffer": "buffer"}  # fmt: skip


@pytest.mark.parametrize("where", KINDS)
@pytest.mark.parametrize("name", TRAINED)
def test_a_step_that_is_not_finite_changes_nothing(
    name: str, where: str, data: Path, given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOOP, "load_method", lambda run: None)  # nobody looks at the pictures
    monkeypatch.setattr(LOOP, "draw_pictures", lambda *rest: None)
    cls = registry.load_class(name)
    if where == "buffer" and name in ("cad", "solo", "viewpoint", "unsup3d"):
        pytest.skip("it has no buffers")
    need = tuple(given[what] for what in cls.needs_of(cls.sizes["tiny"]))
    with spoiling(cls, BAD.__contains__, where):
        with watching() as stayed:
            run = start(name, data, tmp_path / "run", STEPS, need=need)
        assert stayed == [step in BAD for step in range(STEPS)], "bad steps change no bit, good ones do"
        tensors, state = newest(run)
        assert (state["step"], state["skips"], state["done"]) == (STEPS, len(BAD), True)
        assert all(torch.isfinite(v).all() for v in tensors.values())
        lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert lines == [step + 1 for step in range(STEPS) if step not in BAD]
        captures = sorted((run / "captures").iterdir())
        assert [p.name for p in captures] == [f"step-{step:06d}" for step in sorted(BAD)]
        again = replay(captures[1])
    assert again.same and again.offender.startswith(KINDS[where])
    assert f"again: {again.offender} of {again.player} is not finite, as captured" in again.lines()
    assert f"step 2: {again.offender} of" in (run / "log.txt").read_text()
    if where != "buffer":  # written by the test from outside of any operation
        assert any(line.startswith("first ") for line in again.found) or where == "gradient norm"
    with pytest.raises(RunError, match="does not go wrong again"):
        replay(captures[1])


def test_a_checkpoint_after_such_a_step_holds_the_weights_before(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    with spoiling(registry.load_class("dino"), {5}.__contains__, "loss is NaN"):
        run = start("dino", data, tmp_path / "run", 6)
    folders = sorted((run / "checkpoints").iterdir())
    (before, first), (after, second) = (checkpoint.load(folder) for folder in folders)
    assert [first["step"], second["step"]] == [5, 6]
    assert [(s["skips"], s["skips_in_row"]) for s in (first, second)] == [(0, 0), (1, 1)]
    # The end of a training fixes the whitening anew; all else is what it was.
    learned = [{k: v for k, v in x["model"].items() if not k.startswith("whitening.")} for x in (before, after)]
    assert same_bits(*learned)
    assert all(same_bits(before[part], after[part]) for part in before if part != "model")


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_the_counts_of_the_policy_are_exact(allowed: int, data: Path, tmp_path: Path) -> None:
    """A row of `allowed` bad steps is passed, one more stops; a good step ends a row."""
    simclr, set_ = registry.load_class("simclr"), f"max_skips={allowed}"
    row = set(range(2, 2 + allowed))
    with spoiling(simclr, (row | {step + allowed + 1 for step in row}).__contains__, "loss is NaN"):
        run = start("simclr", data, tmp_path / "passes", 10, set_)
    assert newest(run)[1]["skips"] == 2 * allowed and newest(run)[1]["skips_in_row"] == 0
    seen: list[int] = []
    with spoiling(simclr, lambda step: step >= 2 and (step in seen or not seen.append(step)), "loss is NaN"):
        with pytest.raises(NumericError, match=f"in {allowed + 1} steps in a row; stopped at step {2 + allowed}") as error:
            start("simclr", data, tmp_path / "stops", 10, set_)
    assert seen == list(range(2, 3 + allowed)), "no step is tried after the stop"
    assert "selftaught replay" in error.value.do and error.value.exit_code == 4
    assert (tmp_path / "stops" / "captures" / f"step-{2 + allowed:06d}").is_dir()


def test_the_row_is_counted_across_a_stop(data: Path, tmp_path: Path) -> None:
    log = Loop.skip

    def skip_and_stop(self: Loop, *args: Any) -> None:
        log(self, *args)
        if self.step == 3 and self.skips_in_row == 2:
            self.step += 1
            self.save()
            raise Stopped("stopped by the test")

    run = tmp_path / "run"
    with spoiling(registry.load_class("simclr"), lambda step: step >= 2, "loss is NaN"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "skip", skip_and_stop)
            with pytest.raises(Stopped):
                start("simclr", data, run, 12)
        assert newest(run)[1]["skips_in_row"] == 2
        with pytest.raises(NumericError, match="in 4 steps in a row; stopped at step 5"):
            resume(run, quiet=True)


class Fragile(Method):
    """Breaks by itself: where a picture has no contrast, or a random number is small."""

    name, Config, sizes = "fragile", TrainConfig, {"tiny": TrainConfig(image_px=32, batch_size=8, steps=6, lr=0.01)}
    chance = 0.0

    def __init__(self, config: TrainConfig, needs: Any = None):
        super().__init__(config, needs)
        self.first, self.second = nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))

    def players(self) -> dict[str, Player]:
        return {"all": self.main_player()}

    def loss(self, batch: Tensor, player: str, progress: Any) -> Any:
        colours = batch.mean((2, 3)) / (batch.flatten(1).amax(1) > batch.flatten(1).amin(1))[:, None]
        drawn = torch.rand(())
        return self.second(self.first(colours)).square().mean() + (drawn - self.chance).sqrt(), {}


class Two(Method):
    """Two players; the second breaks where the first has got to within the same step, which hangs on its moments."""

    name, Config, sizes = "two", TrainConfig, {"tiny": TrainConfig(image_px=32, batch_size=8, steps=6, lr=0.01, warmup_frac=0)}
    broken, breaks, calls = (0.05, 0.058), "second", list[str]()

    def __init__(self, config: TrainConfig, needs: Any = None):
        super().__init__(config, needs)
        self.a, self.b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.register_buffer("seen", torch.zeros(()))

    def players(self) -> dict[str, Player]:
        return {name: Player([(p, getattr(self, p))], lr=0.02, warmup_frac=0, final_lr_frac=1.0)
                for name, p in (("first", "a"), ("second", "b"))}  # fmt: skip

    def loss(self, batch: Tensor, player: str, progress: Any) -> Any:
        type(self).calls.append(f"{progress.step} {player}")
        self.seen += 1
        if player == "first":
            size = NAN if self.breaks == "first" and progress.step == 2 else 10 if progress.step < 2 else 1e-3
            return -self.a.sum() * size, {}
        a, (low, high) = self.a.detach(), self.broken
        return (self.b * (1 - 2 * ((a > low) & (a < high)).float()).sqrt()).sum() * torch.rand(()), {}


@pytest.fixture
def own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cls in (("fragile", Fragile), ("two", Two)):
        monkeypatch.setitem(representation.METHODS, name, registry.Entry(f"{__name__}:{cls.__name__}", "a test"))
    monkeypatch.setattr(Two, "calls", [])


@pytest.mark.usefixtures("own_methods")
def test_no_player_moves_in_a_step_that_another_one_breaks(data: Path, tmp_path: Path) -> None:
    with watching() as stayed, pytest.raises(NumericError, match="loss of second"):
        start("two", data, tmp_path / "run", 20)
    # 0.02 in the first two steps; then its momentum takes it to 0.0557, it is put back, and gets there again in steps 3 to 5.
    # Without its moments it would take another 0.02, and nothing would go wrong.
    assert stayed == [False, False, True, True, True]
    assert Two.calls[-2:] == ["5 first", "5 second"]
    captures = sorted((tmp_path / "run" / "captures").iterdir())
    assert [p.name for p in captures] == ["step-000003", "step-000004", "step-000005"]
    assert (captures[0] / "optim.first.safetensors").exists() and not (captures[0] / "optim.second.safetensors").exists()
    again = replay(captures[0])
    assert again.same and again.player == "second"
    assert again.found[0].startswith("first NaN: sqrt at test_numbers.py:") and "in loss" in again.found[0]


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize(("breaks", "broken"), [("first", (8, 9)), ("second", (0.015, 0.025))])
def test_a_broken_first_player_stops_the_second_and_a_first_step_has_no_moments(
    breaks: str, broken: tuple[float, float], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Two, "breaks", breaks)
    monkeypatch.setattr(Two, "broken", broken)
    with watching() as stayed:
        if breaks == "first":
            start("two", data, tmp_path / "run", 5)
            assert stayed == [False, False, True, False, False]
            assert "2 first" in Two.calls and "2 second" not in Two.calls
        else:
            with pytest.raises(NumericError):
                start("two", data, tmp_path / "run", 5, "max_skips=1")
            assert stayed == [True]
            _, info = capture.read(tmp_path / "run" / "captures" / "step-000000")
            assert info["optimizers"]["first"]["state"] == {}, "moments that the first step made are gone again"


@pytest.mark.usefixtures("own_methods")
def test_a_replay_needs_the_capture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cause are some of the pictures: the run, its data and its cache may be gone."""
    images = np.random.default_rng(1).integers(0, 255, (24, 32, 32, 3)).astype(np.uint8)
    images[4:8] = 90
    np.savez(tmp_path / "some.npz", images=images)
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(tmp_path / "cache"))
    run = start("fragile", tmp_path / "some.npz", tmp_path / "run", 6)
    (found,) = sorted((run / "captures").iterdir())[:1]
    kept = tmp_path / "elsewhere" / found.name
    shutil.copytree(found, kept)
    for folder in ("run", "cache"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "some.npz").unlink()
    tensors, info = capture.read(kept)
    assert tensors["batch"]["pixels"].dtype == torch.uint8 and tensors["batch"]["pixels"].shape == (8, 3, 32, 32)
    flat = [name for name, x in zip(info["pictures"], tensors["batch"]["pixels"], strict=True) if (x == 90).all()]
    assert flat and all(int(name) in range(4, 8) for name in flat), "the odd pictures are named"
    assert tensors["batch"]["indices"].shape == (8,) and info["job"]["seed"] == 0 and info["step"] == int(kept.name[5:])
    before = sorted(p.name for p in tmp_path.rglob("*"))
    moved: list[str] = []
    monkeypatch.setattr("selftaught.replay.move_needs", lambda method, device: moved.append(device))
    cli.main(["replay", str(kept)])
    assert moved == ["cpu"], "what a method needs comes along to its device"
    out = capsys.readouterr().out
    assert "as captured" in out and "first infinity: div at test_numbers.py:" in out
    assert "first module with an output that is not finite: first (Linear); its input was not" in out
    assert sorted(p.name for p in tmp_path.rglob("*")) == before, "a replay writes nothing"


@pytest.mark.usefixtures("own_methods")
def test_a_replay_draws_the_same_random_numbers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fragile, "chance", 0.5)
    run = start("fragile", data, tmp_path / "run", 16, "max_skips=16")
    skips = newest(run)[1]["skips"]
    assert 3 <= skips <= 13
    for folder in (run / "captures").iterdir():
        assert replay(folder).same
        assert "sqrt at test_numbers.py" in replay(folder).found[0]


def test_reserved_memory_is_no_number() -> None:
    """What happens to lie in memory that was reserved and not yet written is not where NaN began."""
    torch.use_deterministic_algorithms(True)  # fills reserved memory with NaN
    try:
        with Trace(torch.nn.Identity()) as trace:
            value = torch.zeros(3)
            assert torch.empty_like(value).isnan().all() and value.new_empty(2).isnan().all()
            (value - 1).sqrt()
    finally:
        torch.use_deterministic_algorithms(False)
    assert "sqrt at test_numbers.py" in trace.lines()[0]


def test_captures_are_few_and_small_enough(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spoiling(registry.load_class("simclr"), lambda step: step % 2 == 0, "loss is NaN"):
        run = start("simclr", data, tmp_path / "many", 10)
        assert sorted(p.name for p in (run / "captures").iterdir()) == ["step-000004", "step-000006", "step-000008"]
        monkeypatch.setattr(capture, "MOST_BYTES", 1000)
        run = start("simclr", data, tmp_path / "large", 4)
    assert not (run / "captures").exists()
    assert "step 0: not captured: it would take 0.0 GB" in (run / "log.txt").read_text()
    assert newest(run)[1]["skips"] == 2


def test_a_capture_that_cannot_be_written_ends_no_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = checkpoint._fill

    def full(temp: Path, *args: Any) -> None:
        if "captures" in str(temp):
            raise OSError(28, "No space left on device")
        fill(temp, *args)

    monkeypatch.setattr(checkpoint, "_fill", full)
    with spoiling(registry.load_class("simclr"), {1}.__contains__, "loss is NaN"):
        run = start("simclr", data, tmp_path / "run", 4)
    assert "not captured: The disk is full" in (run / "log.txt").read_text()
    assert newest(run)[1]["skips"] == 1 and list((run / "captures").iterdir()) == []


def test_a_damaged_or_wrong_capture_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with spoiling(registry.load_class("simclr"), {1}.__contains__, "loss is NaN"):
        run = start("simclr", data, tmp_path / "run", 2)
    with pytest.raises(RunError, match="is no capture"):
        replay(run / "checkpoints" / "step-000002")
    with pytest.raises(RunError, match="is no capture"):
        replay(run)
    batch = run / "captures" / "step-000001" / "batch.safetensors"
    content = bytearray(batch.read_bytes())
    content[-3] ^= 1
    batch.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        cli.main(["replay", str(batch.parent)])
    assert stop.value.code == 2 and "batch.safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["replay", str(run / "captures" / "step-000009")])
    assert "There is no capture" in capsys.readouterr().err


def test_an_average_that_overflows_stops_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dino = registry.load_class("dino")
    after_step = dino.after_step

    def spoiled(self: Any, progress: Any) -> None:
        after_step(self, progress)
        if progress.step == 3:
            self.centre[0] = NAN

    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(dino, "after_step", spoiled)
    with pytest.raises(NumericError, match="buffer centre was not finite after step 3"):
        start("dino", data, tmp_path / "run")
    assert newest(tmp_path / "run")[1]["step"] == 3, "what was saved is good"


def test_weights_that_are_not_finite_are_never_saved(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dino = registry.load_class("dino")
    after_step = dino.after_step

    def spoiled(self: Any, progress: Any) -> None:
        after_step(self, progress)
        if progress.step == 3:
            next(self.teacher.parameters()).view(-1)[0] = float("inf")

    monkeypatch.setattr(LOOP, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(dino, "after_step", spoiled)
    with pytest.raises(NumericError, match=r"teacher\..* was not finite at step 4"):
        start("dino", data, tmp_path / "run")
    assert all(torch.isfinite(v).all() for v in newest(tmp_path / "run")[0].values())


@pytest.mark.parametrize("setting", ["lr=nan", "lr=inf", "lr=1e30", "lr=-1", "weight_decay=1e30", "clip_norm=nan", "max_skips=-1"])
def test_settings_that_would_spoil_the_weights_are_refused(setting: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0] + "|learning rate"):
        start("simclr", data, tmp_path / "run", 2, setting)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_number_of_a_pair_that_is_not_finite_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depth_range is"):
        start("unsup3d", data, tmp_path / "run", 2, "depth_range=(0.9,inf)")


def test_a_run_of_an_earlier_version_goes_on(data: Path, tmp_path: Path) -> None:
    """Its config.json lacks settings that came later; with their defaults it is the same run."""
    run = start("simclr", data, tmp_path / "run", 3)
    saved = json.loads((run / "config.json").read_text())
    del saved["config"]["max_skips"]
    (run / "config.json").write_text(json.dumps(saved))
    assert start("simclr", data, run, 3) == run
    with pytest.raises(RunError, match="max_skips=3, asked for is max_skips=5"):
        start("simclr", data, run, 3, "max_skips=5")
