"""`selftaught weights import`: tensors of other programs come over, everything else stays outside, and nothing runs."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from selftaught import cli
from selftaught.core import foreign
from selftaught.core.errors import DataError, SelftaughtError
from selftaught.core.foreign import import_weights


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"module.backbone.w": torch.randn(3, 4), "module.backbone.b": torch.arange(3), "module.head.w": torch.rand(2).half()}


def convert(path: Path, key: str | None = None, strip_prefix: str = "") -> tuple[dict[str, Any], bytes]:
    """What the other process does with a file that is known to be harmless, done in this one."""
    result = io.BytesIO()
    order = {"path": str(path), "key": key, "strip_prefix": strip_prefix, "size": path.stat().st_size, "metadata": {"format": "pt"}}
    return foreign._convert(order, result), result.getvalue()


def names(data: bytes) -> list[str]:
    from safetensors.torch import load

    return sorted(load(data))


def test_a_teacher_comes_over_with_its_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "dino.pth", tmp_path / "new" / "dino.safetensors"
    everything = {"teacher": weights(), "epoch": 3, "args": argparse.Namespace(lr=0.1, out="x"),
                  "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}}  # fmt: skip
    torch.save(everything, path)
    cli.main(["weights", "import", str(path), "--out", str(out), "--strip-prefix", "module.backbone."])
    said = capsys.readouterr().out
    assert "w: 3 x 4" in said and "3 tensors" in said and "left out: epoch, args, optimizer" in said and f"wrote {out}" in said
    read = load_file(out)
    assert sorted(read) == ["b", "module.head.w", "w"]
    for name, tensor in weights().items():
        mine = read[name.removeprefix("module.backbone.")]
        assert mine.dtype == tensor.dtype and torch.equal(mine, tensor)
    with safe_open(out, "pt") as file:
        assert file.metadata()["source"] == "dino.pth" and file.metadata()["source_sha256"] == foreign._sha256(path)
    assert [p.name for p in out.parent.iterdir()] == ["dino.safetensors"]


def test_the_summary(tmp_path: Path) -> None:
    path, out = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"model": {**weights(), "bad": torch.tensor([1.0, float("nan")])}}, path)
    summary = import_weights(path, out)
    assert summary["key"] == "model" and summary["tensors"] == 4 and summary["parameters"] == 19 and summary["left_out"] == []
    assert summary["dtypes"] == {"float32": 2, "int64": 1, "float16": 1} and summary["shapes"]["module.backbone.w"] == [3, 4]
    assert summary["not_finite"] == ["bad"] and "NaN" in "\n".join(foreign.lines(summary))
    assert isinstance(summary["offline"], bool) and summary["sha256"] == foreign._sha256(path)


@pytest.mark.parametrize("how", ["zip", "legacy", "top", "ordered", "parameters", "deep"])
def test_the_forms_in_which_weights_are_kept(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    kept: Any = weights()
    if how == "ordered":
        kept = collections.OrderedDict(kept)
    if how == "parameters":
        kept = {name: nn.Parameter(value, requires_grad=value.is_floating_point()) for name, value in kept.items()}
    everything = kept if how == "top" else {"a": {"b": kept}} if how == "deep" else {"state_dict": kept}
    torch.save(everything, path, _use_new_zipfile_serialization=how != "legacy")
    answer, data = convert(path)
    assert answer["key"] == {"top": "", "deep": "a.b"}.get(how, "state_dict")
    assert names(data) == sorted(weights())


def test_views_and_tied_weights_get_memory_of_their_own(tmp_path: Path) -> None:
    big, path = torch.arange(12.0).reshape(3, 4), tmp_path / "a.pth"
    torch.save({"turned": big.T, "part": big[1], "tied": big, "again": big}, path)
    from safetensors.torch import load

    read = load(convert(path)[1])
    assert torch.equal(read["turned"], big.T) and torch.equal(read["part"], big[1]) and torch.equal(read["again"], big)


def test_which_entry_and_which_prefix(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"teacher": weights(), "student": {"x": torch.ones(1)}, "epoch": 1}, path)
    with pytest.raises(DataError, match=r"several sets of tensors: teacher \(3 tensors\), student \(1 tensors\)"):
        convert(path)
    with pytest.raises(DataError, match="Did you mean 'teacher'"):
        convert(path, "teachr")
    answer, data = convert(path, "student")
    assert names(data) == ["x"] and answer["left_out"] == ["teacher", "epoch"]
    with pytest.raises(DataError, match="No name begins with 'net.'"):
        convert(path, "teacher", "net.")
    torch.save({"a.x": torch.ones(1), "x": torch.ones(1)}, path)
    with pytest.raises(DataError, match="one name"):
        convert(path, None, "a.")


@pytest.mark.parametrize(
    ("everything", "says"),
    [([1, 2], "holds a list"), (torch.ones(3), "holds a Tensor"), ({"a": 1}, "no tensors"), ({}, "no tensors"),
     ({"w": torch.ones(1), "lr": 0.1}, "'lr' is no tensor"), ({"w": torch.ones(1), 3: torch.ones(1)}, "printable names"),
     ({"w": torch.eye(3).to_sparse()}, "special kind"), ({"w": torch.ones(1).expand(10**9)}, "claim 4,000,000,000 bytes"),
     ({"a\nb": torch.ones(1)}, "printable names"), ({"__metadata__": torch.ones(1)}, "printable names"),
     ({"x" * 600: torch.ones(1)}, "printable names"), ({"w": torch.empty(3, device="meta")}, "special kind")],
)  # fmt: skip
def test_what_is_not_plain_tensors_is_refused(everything: Any, says: str, tmp_path: Path) -> None:
    torch.save(everything, tmp_path / "a.pth")
    with pytest.raises(DataError, match=says):
        convert(tmp_path / "a.pth")


def test_files_that_are_refused_before_a_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign.subprocess, "run", lambda *_, **__: pytest.fail("it was opened"))
    (tmp_path / "weights.pth").write_bytes(b"x")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "a.pt2").write_bytes(b"PK\3\4")
    (tmp_path / "safe.pth").write_bytes((2).to_bytes(8, "little") + b"{}")
    for name, out, says in (
        ("wieghts.pth", "o.safetensors", "Did you mean 'weights.pth'"), ("weights.pth", "o.pth", "no known suffix"),
        ("empty.pth", "o.safetensors", "0 bytes"), ("a.pt2", "o.safetensors", "compiled program"),
        ("safe.pth", "o.safetensors", "safetensors file already"), (".", "o.safetensors", "There is no file"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            import_weights(tmp_path / name, tmp_path / out)


ATTACKS = {
    "os.system": lambda canary: Call(os.system, f"touch {canary}"),
    "eval": lambda canary: Call(eval, f"open({str(canary)!r}, 'w')"),
    "exec inside a tensor's place": lambda canary: {"w": torch.ones(2), "x": Call(exec, f"open({str(canary)!r}, 'w')")},
    "a module": lambda canary: nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_a_file_that_calls_something_is_refused_and_nothing_runs(name: str, tmp_path: Path) -> None:
    canary, path, out = tmp_path / "canary", tmp_path / "a.pth", tmp_path / "a.safetensors"
    out.write_bytes(b"the old one")
    torch.save({"model": ATTACKS[name](canary)}, path)
    with pytest.raises(DataError, match="refused") as caught:
        import_weights(path, out)
    assert "it calls" in caught.value.why and "weights_only" not in str(caught.value)
    assert not canary.exists() and out.read_bytes() == b"the old one"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth", "a.safetensors"]


@pytest.mark.parametrize("kind", ["pickle", "text", "zip", "cut", "gzip bomb inside"])
def test_files_that_are_no_weights(kind: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    torch.save({"w": torch.zeros(2**23)}, path)
    if kind == "gzip bomb inside":  # 32 MB of zeros in 32 kB
        with zipfile.ZipFile(path) as old:
            members = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, data in members.items():
                new.writestr(name, data)
    else:
        path.write_bytes({"pickle": pickle.dumps(Call(os.system, f"touch {canary}")), "text": b"hello", "zip": b"PK\3\4" + bytes(99),
                          "cut": path.read_bytes()[:5000]}[kind])  # fmt: skip
    with pytest.raises(DataError):
        convert(path)
    assert not canary.exists()


SANDBOX = """
import sys
from selftaught.core import foreign
import pickle, subprocess, socket, shutil, ctypes
sys.addaudithook(foreign.guard)
pickle.loads(bytes.fromhex(sys.argv[1]))
print("it ran")
"""


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize(
    "call",
    [Call(os.system, "touch CANARY"), Call(open, "CANARY", "w"), Call(os.open, "CANARY", os.O_WRONLY | os.O_CREAT),
     Call(subprocess.check_call, ["touch", "CANARY"]), Call(os.mkdir, "CANARY"), Call(os.symlink, "x", "CANARY"),
     Call(exec, "import shutil; shutil.copy('/etc/hostname', 'CANARY')"), Call(os.posix_spawn, "/usr/bin/touch", ["touch", "CANARY"], {})],
)  # fmt: skip
def test_even_a_pickle_that_is_opened_can_do_nothing(call: Call, guarded: bool, tmp_path: Path) -> None:
    """The second line of defence: what the guard ends, the same pickle does without it."""
    code = SANDBOX if guarded else SANDBOX.replace("sys.addaudithook(foreign.guard)", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, pickle.dumps(call).hex()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if guarded:
        assert done.returncode == 1 and "it tried to do more" in done.stderr and "it ran" not in done.stdout
        assert not (tmp_path / "CANARY").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert b"posix_spawn" in pickle.dumps(call) or os.path.lexists(tmp_path / "CANARY")


def test_the_process_is_limited_in_memory_and_has_no_network(tmp_path: Path) -> None:
    code = """
import sys, socket
from selftaught.core import foreign
print("offline" if foreign.leave_network() else "online")
foreign._limit_early({"cpu_s": 60, "size": 0})
try:
    with open("big", "wb") as file:
        file.write(bytes(2**25))
    print("wrote")
except OSError:
    print("too large")
foreign.limit_memory(2**27)
small = bytearray(2**25)
try:
    bytearray(2**29)
    print("it got the memory")
except MemoryError:
    print("too much")
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
    print("connected")
except OSError:
    print("refused")
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n" + code]
        done = subprocess.run([*command, str(server.getsockname()[1])], cwd=tmp_path, env=environment, capture_output=True, text=True)
    words = done.stdout.split("\n")
    assert words[1:3] == ["too large", "too much"], done.stderr
    assert words[0] in ("offline", "online") and words[3] == ("refused" if words[0] == "offline" else "connected")


def test_a_process_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "a.pth")
    monkeypatch.setattr(foreign, "TIMEOUT_S", 0.05)
    with pytest.raises(DataError, match="not read within"):
        import_weights(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_process_that_dies_or_writes_nonsense_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "a.pth")

    def run(returncode: int, answer: str, result: bytes) -> None:
        def fake(command: Any, input: bytes, **_: Any) -> Any:
            import json

            order = json.loads(input)
            Path(order["answer"]).write_text(answer)
            Path(order["result"]).write_bytes(result)
            return subprocess.CompletedProcess(command, returncode)

        monkeypatch.setattr(foreign.subprocess, "run", fake)

    for returncode, answer, result, says in (
        (-9, "{}", b"", "signal 9"), (0, "[]", b"", "corrupt"), (0, '{"key": ""}', b"nonsense", "no whole safetensors"),
        (0, '{"key": ""}', (2).to_bytes(8, "little") + b"{}", "no tensors"), (0, '{"error": {"what": "so it is"}}', b"", "so it is"),
    ):  # fmt: skip
        run(returncode, answer, result)
        with pytest.raises(SelftaughtError, match=says):
            import_weights(tmp_path / "a.pth", tmp_path / "a.safetensors")
        assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_the_users_secrets_do_not_reach_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(weights(), tmp_path / "a.pth")
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    seen: dict[str, Any] = {}

    def fake(command: Any, **options: Any) -> Any:
        seen.update(options)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(foreign.subprocess, "run", fake)
    with pytest.raises(DataError):
        import_weights(tmp_path / "a.pth", tmp_path / "a.safetensors")
    own = {"PYTHONPATH", "HOME", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"}
    assert "SECRET_TOKEN" not in seen["env"] and set(seen["env"]) <= {*foreign.KEPT_VARIABLES, *own}
    assert Path(seen["cwd"]) != Path.cwd() and not Path(seen["cwd"]).exists()
