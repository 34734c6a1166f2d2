"""The verbs of models that can be controlled, in Python and on the command line, with the small model that comes along."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selftaught import cli, load
from selftaught.control.planning import Budget
from selftaught.control.whatif import counterfactual
from selftaught.core.errors import ConfigError, DataError
from selftaught.data.clip_reader import have_av
from selftaught.playing import SHIPPED, Playable
from selftaught.playing_input import keys_of, shipped_folder


@pytest.fixture(scope="module")
def playable() -> Playable:
    return Playable(SHIPPED)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        cli.main(args)
        code: Any = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return int(code or 0), captured.out, captured.err


def test_the_model_that_comes_along_is_small_and_learned(playable: Playable) -> None:
    size = sum(p.stat().st_size for p in shipped_folder().rglob("*") if p.is_file())
    assert size <= 2_000_000, size
    clips = torch.cat([playable.clip(f"{SHIPPED}/{i}") for i in range(100, 112)])
    parsed = playable.model.parse(clips).actions
    played = playable.method.play(clips[:, 0], parsed).frames

    def psnr(x: torch.Tensor) -> float:
        return float((-10 * torch.log10((x - clips[:, 1:9]).square().mean((2, 3, 4)))).mean())

    none = playable.method.play(
        clips[:, 0], parsed._replace(codes=torch.full_like(parsed.codes, int(parsed.codes.mode().values.mode().values)))
    ).frames
    mine, copied, idle = psnr(played[:, 1:9]), psnr(clips[:, :1].expand(-1, 8, -1, -1, -1)), psnr(none[:, 1:9])
    print(f"eight steps from the first frame: {mine:.2f} dB, copying {copied:.2f} dB, no action {idle:.2f} dB")
    assert mine > copied + 2 and mine > idle + 1


def test_parse_tells_actions_and_writes_films(playable: Playable, tmp_path: Path) -> None:
    told = playable.parse(f"{SHIPPED}/3@2", synthesis=True)
    assert len(told.report["keys"]) == 9 == len(told.report["psnr_db"]) and 0 <= told.report["agreement"] <= 1
    written = {p.name for p in told.write(tmp_path / "out")}
    kinds = ("mp4", "gif") if have_av() else ("gif",)
    assert written == {"report.json", *(f"{n}.{k}" for n in ("clip", "masks", "played") for k in kinds)}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["run"] == SHIPPED
    with Image.open(tmp_path / "out" / "played.gif") as film:
        assert getattr(film, "n_frames", 1) == 10


def test_rollout_of_given_keys_and_of_habits(playable: Playable) -> None:
    told = playable.rollout(f"{SHIPPED}/1", "0*2,3")
    assert told.report["keys"] == [0, 0, 3] and told.films["rollout"].shape == (1, 4, 3, 48, 64)
    one, two, other = (playable.rollout(f"{SHIPPED}/1", steps=3, count=4, seed=s) for s in (0, 0, 1))
    assert one.report == two.report and one.report["futures"] != other.report["futures"]
    assert one.films["futures"].shape == (4, 4, 3, 48, 64) and one.report["diversity"] > 0


def test_plan_comes_nearer_than_it_began(playable: Playable) -> None:
    # The clip's own way is in reach; the seventh frame is looked for from the first.
    told = playable.plan(f"{SHIPPED}/5", f"{SHIPPED}/5@5", budget=Budget(sequences=32, horizon=5, rounds=3))
    d = told.report["distances"]
    assert len(told.report["keys"]) == len(d) - 1 and d[-1] == min(d)
    beam = playable.plan(f"{SHIPPED}/5", f"{SHIPPED}/5@5", "beam", Budget(sequences=8, horizon=5))
    assert beam.report["planner"] == "beam" and beam.report["distances"][-1] <= beam.report["distances"][0]
    same = playable.plan(f"{SHIPPED}/5", f"{SHIPPED}/5", budget=Budget(sequences=8, horizon=2, rounds=1))
    assert same.report["keys"] == [] and same.report["distances"] == [0.0], "it is there already"


def test_transfer_and_what_if(playable: Playable) -> None:
    told = playable.transfer(f"{SHIPPED}/2", f"{SHIPPED}/7")
    assert told.films["transfer"].shape == (2, 12, 3, 48, 64)
    assert torch.equal(told.films["result"][0, 0], playable.frame(f"{SHIPPED}/7")[0])
    factual = playable.parse(f"{SHIPPED}/2").report["keys"]
    null = playable.whatif(f"{SHIPPED}/2", factual)
    assert null.report["difference"] == [0.0] * 12, "the same actions give the same frames, bit for bit"
    changed = [(k + 1) % len(playable.keys) for k in factual[3:6]]
    other = playable.whatif(f"{SHIPPED}/2", changed, at=3).report
    assert other["difference"][:4] == [0.0] * 4 and other["difference"][4] > 0 and other["other"][3:6] == changed


def test_clips_are_taken_from_arrays_pictures_and_files(playable: Playable, tmp_path: Path) -> None:
    clip = playable.clip(f"{SHIPPED}/4")
    pixels = (clip[0].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    assert torch.equal(playable.clip(pixels), clip) and torch.equal(playable.clip(clip[0]), clip)
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    assert torch.equal(playable.frame(str(tmp_path / "a.png")), clip[:, 0])
    Image.fromarray(pixels[0]).resize((200, 111)).save(tmp_path / "b.png")
    assert playable.frame(tmp_path / "b.png").shape == (1, 3, 48, 64)
    np.save(tmp_path / "c.npy", pixels)
    assert torch.equal(playable.clip(f"{tmp_path}/c.npy@3"), clip[:, 3:])


def test_a_loaded_run_has_the_same_verbs() -> None:
    learned = load(shipped_folder())
    assert learned.parse(f"{SHIPPED}/0").report["method"] == "lapo"
    assert len(learned.rollout(f"{SHIPPED}/0", [0, 1]).report["keys"]) == 2
    assert learned.playable() is learned.playable(), "it is opened once"


@pytest.mark.parametrize("text", ["", "x", "1*", "-1", "0*0", "1,,2", "1.5", "0*999999", "9" * 400, "0;1"])
def test_texts_that_are_no_actions_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        keys_of(text, 200)


def test_numbers_that_are_no_actions_are_refused(playable: Playable) -> None:
    assert keys_of("0*2, 5", 200) == [0, 0, 5]
    for wrong in ([], [-1], [0] * 300):
        with pytest.raises(ConfigError):
            keys_of(wrong, 200)
    with pytest.raises(ConfigError, match="no action 99"):
        playable.chosen("0,99")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("parse", "nowhere", "x.mp4", "--out", "o"), "There is no run 'nowhere'"),
        (("parse", SHIPPED, "nothing.mp4", "--out", "o"), "nothing.mp4"),
        (("parse", SHIPPED, f"{SHIPPED}/abc", "--out", "o"), "names no clip"),
        (("plan", SHIPPED, SHIPPED, SHIPPED, "--out", "o", "--seed", "9" * 25), "at most 63 bits"),
        (("rollout", SHIPPED, SHIPPED, "--out", "o", "--seed", "-" + "9" * 25), "at most 63 bits"),
        (("parse", SHIPPED, f"{SHIPPED}/1@11", "--out", "o"), "1 frame(s)"),
        (("parse", SHIPPED, f"{SHIPPED}/1", "--out", "o", "--switch", "nan"), "--switch"),
        (("rollout", SHIPPED, f"{SHIPPED}/1@99", "--out", "o"), "no frame 99"),
        (("rollout", SHIPPED, f"{SHIPPED}/1", "--out", "o", "--actions", "left"), "no list of actions"),
        (("rollout", SHIPPED, f"{SHIPPED}/1", "--out", "o", "--futures", "0"), "futures"),
        (("plan", SHIPPED, f"{SHIPPED}/1", "none.png", "--out", "o"), "no picture 'none.png'"),
        (("plan", SHIPPED, f"{SHIPPED}/1", f"{SHIPPED}/1@2", "--out", "o", "--horizon", "0"), "horizon 0"),
        (("whatif", SHIPPED, f"{SHIPPED}/1", "--out", "o", "--actions", "0", "--at", "50"), "from step 50"),
        (("whatif", SHIPPED, f"{SHIPPED}/1", "--out", "o", "--actions", "0", "--at", "-1"), "from step -1"),
        (("transfer", SHIPPED, f"{SHIPPED}/1", "--out", "o"), "TARGET"),
        (("play", "nowhere"), "There is no run 'nowhere'"),
        (("play", "--port", "99999"), "--port"),
        (("play", "--token", "short"), "token"),
        (("plan", SHIPPED, "a", "b", "--out", "o", "--horizn", "3"), "Did you mean '--horizon'"),
    ],
)
def test_bad_input_gives_a_clear_error(
    words: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2 and said in err and "Traceback" not in err, err
    assert not (tmp_path / "o").exists(), "nothing is written"


def test_a_run_that_cannot_be_played_says_so(runs: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "parse", str(runs.straight / "simclr"), f"{SHIPPED}/1", "--out", str(tmp_path / "o"))
    assert code == 2 and "cannot play" in err


def test_commands_write_what_they_say(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = run(capsys, "rollout", SHIPPED, f"{SHIPPED}/1", "--out", str(tmp_path / "o"), "--actions", "0,1")
    assert code == 0 and "keys: 0 1" in out
    told = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    assert all(Path(path).is_file() for path in told) and (tmp_path / "o" / "rollout.gif") in map(Path, told)


@pytest.mark.parametrize(
    "words", ["parse RUN DIR", "rollout RUN DIR@3", "plan RUN a.mp4 DIR@2", "transfer RUN DIR a.png", "whatif RUN DIR --actions 0"]
)
def test_films_are_not_written_among_the_frames(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = words.replace("RUN", SHIPPED).replace("DIR", str(tmp_path)).split()
    code, _, err = run(capsys, *told, "--out", str(tmp_path / "films"))
    assert code == 2 and "inside of the data" in err and not (tmp_path / "films").exists()


def test_a_run_without_its_clips_can_be_played_and_says_what_is_missing(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(shipped_folder(), tmp_path / "run")
    (tmp_path / "run" / "habits.json").unlink()
    playable = Playable(tmp_path / "run")
    assert len(playable.notes) == 1 and "not known" in playable.notes[0]
    assert float(playable.habits.unigram.max() - playable.habits.unigram.min()) == 0
    assert playable.rollout(f"{SHIPPED}/0", steps=2, count=2).report["notes"] == playable.notes


def test_habits_are_counted_on_the_run_s_own_clips(runs: Any) -> None:
    run_ = runs.straight / "lapo"
    playable = Playable(run_)
    assert not playable.notes and (run_ / "habits.json").is_file()
    assert torch.allclose(Playable(run_).habits.bigram, playable.habits.bigram), "what was written is read"
    with pytest.raises(DataError):
        playable.clip(np.zeros((1, 32, 32, 3), np.uint8))


def test_glass_has_the_same_verbs(runs: Any, tmp_path: Path) -> None:
    """Of a model with shifts and codes: the same verbs, the same kinds of answers, the same nothing of a null intervention."""
    playable = Playable(runs.straight / "glass")
    clip = torch.rand(5, 3, playable.height, playable.width, generator=torch.Generator().manual_seed(0))
    n = len(playable.keys)
    parsed = playable.parse(clip, synthesis=True).report
    assert parsed["method"] == "glass" and len(parsed["keys"]) == 4 and max(parsed["keys"]) < n
    last = n - 1
    assert playable.rollout(clip, [0, last]).report["keys"] == [0, last]
    assert playable.rollout(clip, steps=3, count=2).films["futures"].shape[:2] == (2, 4)
    for how in ("cem", "beam"):
        plan = playable.plan(clip, clip[2:], how, Budget(sequences=4, horizon=2, rounds=2, elites=2)).report  # type: ignore[arg-type]
        assert plan["distances"][-1] == min(plan["distances"]) and len(plan["keys"]) == len(plan["distances"]) - 1
    told = playable.transfer(clip, clip[1:])
    assert told.report["keys"] == parsed["keys"] and told.films["result"].shape == (1, 5, 3, playable.height, playable.width)
    other = playable.whatif(clip, [last], at=1)
    assert other.report["difference"][:2] == [0.0, 0.0]
    parsed_keys = other.report["factual"]
    null = counterfactual(playable.model, playable.model.start(clip[None, 0]), *2 * [playable.keys.actions(torch.tensor([parsed_keys]))])
    assert float(null.difference.max()) == 0
    assert {p.name for p in other.write(tmp_path)} >= {"report.json", "whatif.gif"}
    later = playable.model.start(clip[None])  # a clip that was seen, not a picture alone
    assert torch.equal(playable.model.render(later), clip[None, -1])


@pytest.mark.parametrize("verb", ["parse", "rollout", "plan", "transfer", "whatif", "play"])
def test_help_of_the_verbs_is_fast_and_needs_no_torch(verb: str) -> None:
    code = (
        "import sys\nfrom selftaught import cli\n"
        f"try:\n    cli.main(['{verb}', '--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'numpy', 'fastapi', 'PIL'} & set(sys.modules)\n"
    )
    begin = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--out" in done.stdout + "--out" and verb in done.stdout, done.stderr
    assert time.process_time() - begin < 1
