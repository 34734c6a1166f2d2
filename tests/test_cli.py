"""The command: flags that stay, errors that help, exit codes, and speed.

`python tests/test_cli.py` writes `tests/cli_flags.json` anew after a change of the flags that is meant.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from selftaught import __version__, cli
from selftaught.core.errors import DataError, SelftaughtError

FLAGS = Path(__file__).with_name("cli_flags.json")


def all_flags() -> dict[str, dict[str, str]]:
    return {verb: cli.flags(verb) for verb in cli.VERBS}


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command."""
    try:
        cli.main(args)
        code: Any = 0
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return int(code or 0), captured.out, captured.err


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the functions that the verbs call; keeps the arguments of the last call under its name."""
    seen: dict[str, Any] = {}

    def stand_in(module: str, *names: str) -> None:
        fake = types.ModuleType(module)
        for name in names:

            def call(*args: Any, _name: str = name, **kwargs: Any) -> Any:
                seen[_name] = (args, kwargs)
                return seen.get("returns", "RESULT")

            setattr(fake, name, call)
        monkeypatch.setitem(sys.modules, module, fake)

    stand_in("selftaught.learn", "learn")
    stand_in("selftaught.train", "train", "resume")
    stand_in("selftaught.evaluate", "evaluate")
    stand_in("selftaught.apply", "embed", "segment", "export")
    stand_in("selftaught.cluster", "embed", "segment")
    return seen


@pytest.fixture
def finished(tmp_path: Path) -> str:
    """A folder that looks like a run."""
    folder = tmp_path / "runs" / "simclr"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return str(folder)


def test_flags_are_frozen() -> None:
    assert all_flags() == json.loads(FLAGS.read_text()), "run `python tests/test_cli.py` if this change is meant"


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_the_frozen_flags_are_those_of_the_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    shown = set(re.findall(r"^\W*(--[a-z][a-z-]*)", out, re.MULTILINE))
    assert shown == {flag for flag in cli.flags(verb) if flag.startswith("--")}


def test_help_is_fast_and_light() -> None:
    code = "import sys; from selftaught.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert all(verb in done.stdout for verb in cli.VERBS)
    assert min(seconds) < 1.0


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert "First steps" in out


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[1] == f"selftaught {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "selftaught", "--version"], capture_output=True, text=True)
    assert done.stdout == f"selftaught {__version__}\n"


def test_a_crash_of_a_library_says_where() -> None:
    code = "import os\nfrom selftaught.cli import main\nmain(['--version'])\nos.abort()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT and "Fatal Python error: Aborted" in done.stderr and 'File "<string>", line 4' in done.stderr
    closed = subprocess.run(["bash", "-c", f"exec {sys.executable} -m selftaught --version 2>&-"], capture_output=True, text=True)
    assert closed.stdout == f"selftaught {__version__}\n"


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["trian", "simclr"], "'train'"),
        (["train", "simclr", "sample:things", "--oot", "x"], "'--out'"),
        (["train", "simclr", "sample:things", "--out", "x", "--sede=3"], "'--seed'"),
        (["train", "simcrl", "sample:things", "--out", "x"], "'simclr'"),
        (["learn", "sample:things", "--out", "x", "--features", "dyno"], "'dino'"),
        (["methods", "tokenct"], "'tokencut'"),
    ],
)
def test_a_mistyped_word_gets_a_suggestion(args: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *args)
    assert code == 2
    assert f"Did you mean {hint}?" in err
    assert "expected: " in err
    assert "Traceback" not in err + out


def test_a_mistyped_path_gets_a_suggestion(
    tmp_path: Path, finished: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    code, _, err = run(capsys, "learn", str(tmp_path / "phtos"), "--out", "x")
    assert code == 2 and f"Did you mean '{tmp_path / 'photos'}'?" in err
    code, _, err = run(capsys, "learn", str(tmp_path / "phtos" / "cats"), "--out", "x")
    assert code == 2 and f"Did you mean '{tmp_path / 'photos'}'?" in err
    code, _, err = run(capsys, "resume", str(tmp_path / "runs" / "simcl"))
    assert code == 2 and f"Did you mean '{finished}'?" in err
    code, _, err = run(capsys, "resume", str(tmp_path / "photos"))
    assert code == 2 and "is not a run" in err
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'photos'?" in run(capsys, "data", "check", "photo")[2]


def test_features_must_be_a_method_that_learns_features(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "learn", "sample:things", "--out", "x", "--features", "tokencut")
    assert code == 2
    assert "simclr" in err and "tokencut" in err


def test_learn_passes_everything_on(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["learn", "sample:things", "--out", "r", "--minutes", "2.5", "--size", "tiny", "--seed", "3"]
    code, _, err = run(capsys, *args, "--features", "mae", "--need", "features=a", "--need", "b=c")
    assert code == 0, err
    assert job["learn"] == (
        ("sample:things", "r"),
        {"minutes": 2.5, "size": "tiny", "seed": 3, "features": "mae", "need": ("features=a", "b=c"), "objects": "auto"},
    )
    assert run(capsys, *args, "--objects", "move")[0] == 0 and job["learn"][1]["objects"] == "move"
    assert run(capsys, *args, "--objects", "both")[0] == 2


def test_train_passes_everything_on(job: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    args = ["train", "--set", "lr=0.1", "simclr", "sample:things", "--out", "r", "--steps", "7", "--set=steps=9"]
    code, out, err = run(capsys, *args, "--quiet", "--device", "auto", "--sharding", "fsdp")
    assert code == 0, err
    assert job["train"] == (
        ("simclr", "sample:things", "r"),
        {
            "size": "small",
            "steps": 7,
            "seed": 0,
            "set": ("lr=0.1", "steps=9"),
            "need": (),
            "device": "auto",
            "quiet": True,
            "sharding": "fsdp",
        },
    )
    assert "selftaught evaluate RESULT" in out


def test_the_other_verbs_pass_everything_on(
    job: dict[str, Any], finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "resume", finished, "--steps", "40", "--sharding", "ddp", "--device", "cpu")[0] == 0
    assert job["resume"] == ((finished,), {"steps": 40, "sharding": "ddp", "device": "cpu"})
    assert run(capsys, "embed", finished, "sample:things", "--out", "x.npz")[0] == 0
    assert job["embed"] == ((finished, "sample:things", "x.npz"), {})
    assert run(capsys, "segment", finished, "sample:things", "--out", "d", "--threshold", "0.4")[0] == 0
    assert job["segment"] == ((finished, "sample:things", "d"), {"threshold": 0.4, "min_area": 0.001})
    job["returns"] = ["a.onnx", "b.json"]
    code, out, _ = run(capsys, "export", finished, "--format", "onnx", "--format", "coco", "--out", "d")
    assert code == 0
    assert job["export"] == ((finished, ("onnx", "coco"), "d"), {"data": None})
    assert out == "wrote a.onnx\nwrote b.json\n"


@pytest.mark.parametrize("verb", ["embed", "segment"])
def test_bulk_work_goes_to_the_engine_asked_for(
    job: dict[str, Any], finished: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    fractions = {"threshold": 0.5, "min_area": 0.001} if verb == "segment" else {}
    monkeypatch.setattr(sys.modules["selftaught.apply"], verb, None)
    assert run(capsys, verb, finished, "sample:things", "--out", "d", "--engine", "ray", "--workers", "3")[0] == 0
    assert job[verb] == ((finished, "sample:things", "d"), {"workers": 3, **fractions})
    code, _, err = run(capsys, verb, finished, "sample:things", "--out", "d", "--workers", "3")
    assert code == 2 and "Add --engine ray" in err


def test_evaluate_prints_scores_with_their_baselines(
    job: dict[str, Any], finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    score = types.SimpleNamespace(
        value=0.61234, ci95=(0.58, 0.64), n=1000, better="higher", unit="share", baselines={"raw pixels": 0.4}, note=""
    )
    job["returns"] = {"knn": score}
    code, out, _ = run(capsys, "evaluate", finished, "--json", "s.json", "--limit", "10")
    assert code == 0
    assert job["evaluate"] == ((finished, None), {"json": "s.json", "limit": 10})
    assert all(text in out for text in ("knn", "0.612", "0.580 to 0.640", "1000", "higher", "raw pixels 0.400"))
    job["returns"] = {}
    assert "nothing to score" in run(capsys, "evaluate", finished, "sample:things")[1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("too many broken files", exit_code=3), 3),
        (SelftaughtError("disk full", exit_code=5), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, job: dict[str, Any], finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    sys.modules["selftaught.train"].resume = fail  # type: ignore[attr-defined]
    got, out, err = run(capsys, "resume", finished)
    assert got == code
    assert err.startswith("selftaught: ") and "Traceback" not in err and not out


def test_missing_arguments_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "train", "simclr", "sample:things")
    assert code == 2 and "--out" in err
    code, _, err = run(capsys, "train", "simclr", "sample:things", "--out", "x", "--size", "smal")
    assert code == 2 and "tiny" in err
    assert run(capsys, "data", "chekc", "x")[0] == 2


def test_data_make_and_check_say_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "data", "make", "w-sprites")
    assert code == 2 and "data make w-sprites DIR" in err
    code, _, err = run(capsys, "data", "make", "w-sprite", str(tmp_path / "w"))
    assert code == 2 and "Did you mean 'w-sprites'?" in err
    code, _, err = run(capsys, "data", "make", "w-sprites", str(tmp_path / "w"), "--set", "ground=sky")
    assert code == 2 and "sky" in err and not (tmp_path / "w").exists()
    code, _, err = run(capsys, "data", "check", "sample:things", str(tmp_path / "w"))
    assert code == 2 and "one source" in err


@pytest.mark.parametrize(
    ("words", "flag", "other"),
    [
        ("make w-sprites DIR --json r.json", "--json", "check"), ("make cars DIR --kind clips", "--kind", "check"),
        ("check sample:things --clips 3", "--clips", "make"), ("check sample:things --seed 1 --set px=32", "--seed, --set", "make"),
    ],
)  # fmt: skip
def test_flags_of_the_other_action_are_refused(
    words: str, flag: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "data", *words.replace("DIR", str(tmp_path / "w")).split())
    assert code == 2 and f"{flag} is for `selftaught data {other}`" in err and not (tmp_path / "w").exists()


def test_methods_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    from selftaught.registry import methods

    code, out, _ = run(capsys, "methods")
    assert code == 0
    assert all(name in out and entry.summary in out for name, entry in methods().items())


def test_methods_of_one_method_lists_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "methods", "simclr")
    assert code == 0, err
    assert "temperature=" in out and "batch_size=" in out and "needs: nothing" in out
    assert "Pictures per optimiser step." in out, "fields that are inherited have their help as well"


def test_a_closed_pipe_is_no_error() -> None:
    code = f"{sys.executable} -m selftaught methods | head -n 1"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stdout == "representation\n"
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_doctor_says_ok_or_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    from selftaught.doctor import examine

    checks = examine()
    names = [check.name for check in checks]
    for name in ("python", "torch", "threads", "bf16", "memory", "disk", "cache", "extra export"):
        assert name in names
    code, out, _ = run(capsys, "doctor")
    assert code == 0
    assert "ready" in out and "torch uses" in out


def test_doctor_names_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("x")
    monkeypatch.setenv("SELFTAUGHT_CACHE", str(blocker / "cache"))
    code, out, _ = run(capsys, "doctor")
    assert code == 1
    assert "bad   cache" in out and "set SELFTAUGHT_CACHE" in out


def test_doctor_looks_at_the_cache_that_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selftaught import doctor

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SELFTAUGHT_CACHE", "~/kept")
    (check,) = doctor._cache()
    assert check.status == "ok" and check.found.startswith(str(tmp_path / "kept"))


def test_doctor_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from selftaught import doctor

    monkeypatch.setattr(doctor, "OPTIONAL", {"export": (("no_such_package",), "other programs")})
    (check,) = doctor._optional()
    assert check.status == "warn" and check.do == 'pip install "selftaught[export]"'
    assert check.found == "missing no_such_package; for other programs"


def test_doctor_lists_every_extra() -> None:
    from selftaught import doctor

    text = (Path(__file__).parents[1] / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2]
    extras = set(re.findall(r"^(\w+) = \[", text.partition("\n[")[0], re.MULTILINE))
    assert len(extras) > 5 and set(doctor.OPTIONAL) == extras - {"dev"}


@pytest.mark.parametrize("name", ["~no-such-user/x", "n" * 300, f"{'n' * 300}/x"], ids=["user", "long", "below long"])
def test_names_that_can_be_nothing_are_errors_like_others(capsys: pytest.CaptureFixture[str], name: str) -> None:
    for words in (("data", "check", name), ("evaluate", name), ("replay", name), ("parse", "sample:w-sprites", name, "--out", "x")):
        code, out, err = run(capsys, *words)
        assert code == 2 and not out and name in err, words


if __name__ == "__main__":
    FLAGS.write_text(json.dumps(all_flags(), indent=2) + "\n")
    print(f"wrote {FLAGS.name}")
