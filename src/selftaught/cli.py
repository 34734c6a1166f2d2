"""The command `selftaught`: verbs only; each one imports what it needs when it is called."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import os
import sys
import typing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from selftaught import cli_play
from selftaught.cli_checks import as_clips, check_data, check_features, check_field_words, check_method, check_run, near
from selftaught.core.allocator import keep_memory
from selftaught.core.crashes import tell_of_crashes
from selftaught.core.errors import EXIT_SIGINT, EXIT_USAGE, ConfigError, RunError, SelftaughtError, suggest

Data = Positional[Annotated[str, arg(metavar="DATA")]]
Run = Positional[Annotated[str, arg(metavar="RUN")]]
Size = Literal["tiny", "small", "paper"]
Need = UseAppendAction[Annotated[tuple[str, ...], arg(metavar="NAME=RUN")]]
Limit = Annotated[int | None, arg(metavar="N")]
Device = Literal["cpu", "auto"]
Sharding = Literal["ddp", "fsdp"]
Engine = Literal["local", "ray"]
Format = Literal["coco", "masks", "npz", "onnx", "parquet", "yolo"]
Switch = FlagCreatePairsOff[bool]

HELP = "A machine that learns by itself from raw pictures: features, objects and a report, without labels."
FIRST = "First steps:  selftaught doctor  |  selftaught learn sample:things --out runs/things --minutes 10"


def learn(
    data: Data,
    *,
    out: str,
    minutes: Annotated[float | None, arg(metavar="MINUTES")] = None,
    size: Size = "small",
    seed: int = 0,
    features: Annotated[str, arg(metavar="METHOD")] = "simclr",
    need: Need = (), objects: Literal["auto", "cut", "move"] = "auto",
) -> None:  # fmt: skip
    """Learn features and objects from a folder of pictures, and write a report. The same command again goes on.

    Args:
        data: Folder, list file, tar shards, .npz, or sample:things.
        out: Folder of the run.
        minutes: Time to spend; becomes a number of steps once, at the start.
        size: tiny (seconds), small (CPU minutes), paper (GPUs).
        seed: Seed of everything random.
        features: Method that learns the features.
        need: Use an already learned run, e.g. features=runs/dino.
        objects: cut, move (both; the better one by measures without truth is kept), auto: move from 30 minutes on and at size paper.
    """
    check_data(data)
    check_features(features)
    from selftaught.learn import learn as job

    job(data, out, minutes=minutes, size=size, seed=seed, features=features, need=need, objects=objects)


def train(
    method: Positional[Annotated[str, arg(metavar="METHOD")]],
    data: Data,
    *,
    out: str,
    size: Size = "small",
    steps: Limit = None,
    seed: int = 0,
    backbone: Annotated[str | None, arg(metavar="NAME")] = None,
    set_fields: UseAppendAction[Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE")]] = (),
    need: Need = (),
    device: Device = "cpu",
    sharding: Sharding = "ddp",
    quiet: Switch = False,
) -> None:
    """Train one method; what it needs is trained first, or given with --need.

    Args:
        method: One of `selftaught methods`.
        data: Folder, list file, tar shards, .npz, or sample:things.
        out: Folder of the run.
        size: tiny (seconds), small (CPU minutes), paper (GPUs).
        steps: Number of steps instead of the size's own.
        seed: Seed of everything random.
        backbone: The network, short for --set backbone=NAME, e.g. timm:vit_small_patch8_224.dino.
        set_fields: Change a field of the method's config; `selftaught methods METHOD` lists them.
        need: Use an already learned run for a need, e.g. features=runs/dino.
        device: cpu, or auto for the fastest one that is there.
        sharding: Under torchrun: ddp keeps the whole model in every process, fsdp a part of it.
        quiet: No progress lines.
    """
    check_method(method)
    check_data(data)
    from selftaught.train import train as job

    if backbone:
        set_fields = (f"backbone={backbone}", *set_fields)
    done = job(
        method, data, out, size=size, steps=steps, seed=seed, set=set_fields, need=need, device=device, quiet=quiet,
        sharding=sharding,
    )  # fmt: skip
    _print_once(f"learned: {done}\nnext: selftaught evaluate {done}")


def resume(run: Run, *, steps: Limit = None, device: Device | None = None, sharding: Sharding | None = None) -> None:
    """Go on with a run that was stopped, bit for bit as if it had not been.

    Args:
        run: Folder of the run.
        steps: New total number of steps.
        device: Another one than before: cpu, or auto for the fastest one that is there.
        sharding: Another one than before; the number of processes may be another as well.
    """
    check_run(run)
    if not os.path.isfile(Path(os.path.expanduser(run)) / "config.json"):
        raise RunError(f"'{run}' is a run of `selftaught learn`.", do="Give that command again: it goes on.")
    from selftaught.train import resume as job

    _print_once(f"learned: {job(run, steps=steps, sharding=sharding, device=device)}")


def replay(capture: Positional[Annotated[str, arg(metavar="CAPTURE")]]) -> None:
    """Compute a step again whose numbers were not finite, and say where the first bad number came from.

    Args:
        capture: A folder such as RUN/captures/step-000123.
    """
    if not os.path.isdir(capture):
        raise RunError(f"There is no capture '{capture}'.{near(Path(capture))}", expected="RUN/captures/step-000123")
    from selftaught.replay import replay as job

    print("\n".join(job(capture).lines()))


def evaluate(
    run: Run,
    data: Positional[Annotated[str | None, arg(metavar="[DATA]")]] = None,
    *,
    dataset: Literal["ecssd", "duts-te", "dut-omron", "voc07", "voc12", "coco20k"] | None = None,
    root: Annotated[str | None, arg(metavar="DIR")] = None,
    protocol: Annotated[str, arg(metavar="NAME")] = "",
    set_fields: UseAppendAction[Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE")]] = (),
    json: Annotated[str | None, arg(metavar="FILE")] = None,
    limit: Limit = None,
) -> None:
    """Score a run beside its baselines; labels and masks found with the data serve this and nothing else.

    Args:
        run: Folder of the run.
        data: Other data than the run's own.
        dataset: One of the field's data sets instead of data, as it is officially laid out below --root.
        root: Folder of that data set.
        protocol: Whose conventions to score that data set by: move, tokencut, lost, selfmask, box-refinement, pysodmetrics, talk.
        set_fields: Change a convention of the protocol; all are printed with the scores.
        json: Also write the scores to this file.
        limit: Use at most N pictures.
    """
    check_run(run)
    check_field_words(data, dataset, root, protocol, set_fields)
    if data is not None:
        check_data(data)
    from selftaught.measure.score import print_scores

    if dataset is not None and root is not None:
        from selftaught.evaluate import evaluate_field

        result = evaluate_field(run, dataset, root, protocol=protocol, set=set_fields, json=json, limit=limit)
        print("\n".join(result.lines()))
        return print_scores(result.scores)
    from selftaught.evaluate import evaluate as job

    print_scores(job(run, data, json=json, limit=limit))


def embed(run: Run, data: Data, *, out: str, engine: Engine = "local", workers: Limit = None) -> None:
    """Write one feature vector per picture.

    Args:
        run: Folder of the run.
        data: Pictures to embed.
        out: FILE.parquet or FILE.npz, with the keys path and embedding; with --engine ray a folder of Parquet files.
        engine: local, or ray for many tar shards on a cluster ($RAY_ADDRESS, else this machine).
        workers: Processes of --engine ray; all processors when not given.
    """
    check_run(run)
    check_data(data)
    print(f"wrote {_engine('embed', engine, workers)(run, data, out)}")


def segment(
    run: Run,
    data: Data,
    *,
    out: str,
    threshold: Annotated[float, arg(metavar="FRACTION")] = 0.5,
    min_area: Annotated[float, arg(metavar="FRACTION")] = 0.001,
    boxes: Literal["largest", "refinement", "all"] | None = None,
    smooth: Annotated[int | None, arg(metavar="FRAMES")] = None,
    engine: Engine = "local",
    workers: Limit = None,
) -> None:
    """Write a soft mask per picture, or per frame of clips, and the boxes of the objects found.

    Args:
        run: Folder of the run.
        data: Pictures to segment; videos, or a folder with videos in it, are taken as clips.
        out: Folder for masks/STEM.png and objects.coco.json, and clips/STEM.mp4 for clips; with --engine ray for Parquet files.
        threshold: A pixel belongs to an object from this value of the soft mask on (0 to 1).
        min_area: Objects below this share of the picture are left out (0 to 1).
        boxes: Also write boxes.coco.json: the box of the largest piece, the largest box as Box-based Refinement takes it, or all.
        smooth: Clips: median over so many frames (odd; 1 for none); 3 when not given, 1 for methods that see whole clips.
        engine: local, or ray for many tar shards on a cluster ($RAY_ADDRESS, else this machine).
        workers: Processes of --engine ray; all processors when not given.
    """
    check_run(run)
    check_data(data)
    if as_clips(data, boxes, engine, workers, smooth):
        from selftaught.apply_clips import segment_clips

        print(f"wrote {segment_clips(run, data, out, threshold=threshold, min_area=min_area, smooth=smooth)}")
        return
    job = _engine("segment", engine, workers)
    more = {} if boxes is None else {"boxes": boxes}
    print(f"wrote {job(run, data, out, threshold=threshold, min_area=min_area, **more)}")


def reconstruct(run: Run, data: Data, *, out: str, px: Annotated[int, arg(metavar="PX")] = 160, limit: Limit = None) -> None:
    """Write the solid object in each picture: a textured GLB, a turntable GIF, depth; the poses of all, and a page that turns them.

    Args:
        run: Folder of the run.
        data: Pictures of one object each.
        out: Folder for KEY.glb, KEY.gif, KEY.depth.png, poses.json and index.html.
        px: Side of the turntable's frames in pixels.
        limit: Take the first N pictures only.
    """
    check_run(run)
    check_data(data)
    from selftaught.reconstruct import reconstruct as job

    print(f"wrote {job(run, data, out, px=px, limit=limit)}")


def _engine(verb: str, engine: Engine, workers: int | None) -> Callable[..., Path]:
    """The function that does a verb, here or on a cluster."""
    if engine == "local" and workers is not None:
        raise ConfigError("--workers says how many processes a cluster gets.", do="Add --engine ray.")
    module = importlib.import_module("selftaught.cluster" if engine == "ray" else "selftaught.apply")
    job: Callable[..., Path] = getattr(module, verb)
    return partial(job, workers=workers) if engine == "ray" else job


def methods(method: Positional[Annotated[str | None, arg(metavar="[METHOD]")]] = None) -> None:
    """List the methods; with a name, list what can be set in that method's config.

    Args:
        method: Show the config fields of this method.
    """
    from selftaught import registry

    if method is None:
        for room in registry.ROOMS:
            print(room)
            for name, entry in registry.room_methods(room).items():
                print(f"  {name:<10} {entry.summary}")
        print("\n`selftaught methods METHOD` shows its config; `selftaught train METHOD DATA --out RUN` trains it.")
        return
    check_method(method)
    _print_fields(method, registry.load_class(method))


def data(
    action: Positional[Annotated[Literal["check", "make"], arg(metavar="{check,make}")]],
    source: Data,
    folder: Positional[Annotated[str | None, arg(metavar="[DIR]")]] = None,
    *,
    json: Annotated[str | None, arg(metavar="FILE")] = None,
    kind: Literal["auto", "pictures", "clips"] = "auto", clips: Limit = None, pictures: Limit = None,
    seed: int = 0, size: Size = "small",
    set_fields: UseAppendAction[Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE")]] = (),
) -> None:  # fmt: skip
    """`data check DATA` reports what is there and what is wrong with it; `data make WORLD DIR` writes clips or pictures with truth.

    Args:
        action: check, or make.
        source: Folder, list file, tar shards, .npz, video or sample:things; for make a world: w-sprites, flare, arm,
        drawn-tennis, heads, cars, chairs, meshes.
        folder: make: new folder to write to.
        json: check: also write the report to this file.
        kind: check: pictures or clips; auto takes a folder with videos in it as clips.
        clips: make: number of clips, 3000 when not given; every fifth is for test.
        pictures: make: the same for heads, cars, chairs and meshes (at most as many as there are mesh files).
        seed: make: seed of the clips or pictures.
        size: make: tiny (clips 32x32, objects 32x32), small (48x64, 64x64), paper (96x128, drawn-tennis 96x256; 128x128).
        set_fields: make: change a field of the recipe, e.g. --set correlated=false.
    """
    from selftaught import look

    checks = {"--json": json is not None, "--kind": kind != "auto"}
    makes = {"--clips": clips is not None, "--pictures": pictures is not None, "--seed": seed != 0, "--size": size != "small"}
    look.refuse_words(action, source, folder, checks, makes | {"--set": bool(set_fields)})
    if folder is not None:
        print("\n".join(look.make(source, folder, clips, pictures, seed, size, set_fields)))
        return
    check_data(source)
    print("\n".join(look.check(source, kind, json)))


def export(
    run: Run,
    data: Positional[Annotated[str | None, arg(metavar="[DATA]")]] = None,
    *,
    formats: UseAppendAction[Annotated[tuple[Format, ...], arg(name="format")]] = (),
    out: Annotated[str | None, arg(metavar="DIR")] = None,
) -> None:
    """Write what was learned in formats that other programs read.

    Args:
        run: Folder of the run.
        data: Pictures to write masks, boxes and embeddings of, instead of the run's own.
        formats: What to write; everything when not given.
        out: Folder to write to, instead of RUN/export.
    """
    check_run(run)
    if data is not None:
        check_data(data)
    from selftaught.apply import export as job

    for path in job(run, formats, out, data=data):
        print(f"wrote {path}")


def weights(
    action: Positional[Annotated[Literal["import"], arg(metavar="import")]],
    file: Positional[Annotated[str, arg(metavar="FILE.pth")]],
    *,
    out: str,
    key: Annotated[str | None, arg(metavar="KEY")] = None,
    strip_prefix: Annotated[str, arg(metavar="PREFIX")] = "",
) -> None:
    """`selftaught weights import FILE.pth --out FILE.safetensors` converts foreign weights in a limited process.

    Args:
        action: The word import.
        file: File of another program (.pth, .pt, .ckpt, .bin); it is not trusted.
        out: FILE.safetensors to write.
        key: Entry of nested dictionaries that holds the tensors, e.g. teacher or model.backbone.
        strip_prefix: Taken off the beginning of the names that have it, e.g. "module.".
    """
    from selftaught.core.foreign import import_weights, lines

    print("\n".join(lines(import_weights(file, out, key, strip_prefix))))


def doctor() -> None:
    """Look at this machine: Python, torch, threads, bf16, memory, disk, cache, optional packages."""
    from selftaught.doctor import examine, lines

    checks = examine()
    print("\n".join(lines(checks)))
    if any(check.status == "bad" for check in checks):
        raise SystemExit(1)


VERBS: dict[str, Callable[..., None]] = {
    verb.__name__: verb
    for verb in (
        learn, train, resume, replay, evaluate, embed, segment, reconstruct, *cli_play.VERBS, methods, data, export, weights, doctor,
    )  # fmt: skip
}


MANY = ("train", "resume", "methods", "doctor")
"""Verbs that torchrun may start."""


def flags(verb: str) -> dict[str, str]:
    """The flags and positional arguments of a verb, each with its default ("required" when it has none)."""
    hints = typing.get_type_hints(VERBS[verb], include_extras=True)
    found: dict[str, str] = {}
    for name, parameter in inspect.signature(VERBS[verb]).parameters.items():
        default = "required" if parameter.default is inspect.Parameter.empty else repr(parameter.default)
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            found[name] = default
        else:
            found["--" + (_given_name(hints[name]) or name).replace("_", "-")] = default
    return found


def _given_name(hint: Any) -> str | None:
    """The name set with `tyro.conf.arg(name=...)` anywhere in a hint; type aliases flatten their annotations."""
    for extra in getattr(hint, "__metadata__", ()):
        if getattr(extra, "name", None):
            return str(extra.name)
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with the code of core.errors, and never with a traceback for a user's mistake."""
    args = list(sys.argv[1:] if argv is None else argv)
    tell_of_crashes()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A path may hold bytes that are no text; a stream that was turned into a pipe underneath cannot be told so.
        with contextlib.suppress(OSError):
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(args)
        sys.stdout.flush()
    except SelftaughtError as error:
        _complain(f"selftaught: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _complain("selftaught: interrupted")
        raise SystemExit(EXIT_SIGINT) from None
    except BrokenPipeError:
        # The reader (`| head`) has enough; Python would complain once more while it closes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_USAGE) from None


def _complain(text: str) -> None:
    """Print to standard error; where the terminal is gone only the exit code tells, and Python must not change it."""
    try:
        print(text, file=sys.stderr)
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())


def _run(args: list[str]) -> None:
    if args and args[0] in ("--version", "-V"):
        from selftaught import __version__

        print(f"selftaught {__version__}")
        return
    _check_words(args)
    keep_memory()
    verbs: dict[str, Callable[..., Any]] = dict(VERBS)
    tyro.extras.subcommand_cli_from_dict(verbs, prog="selftaught", description=f"{HELP}\n\n{FIRST}", args=args or ["--help"])


def _print_once(text: str) -> None:
    """Print, in the first of torchrun's processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def _check_words(args: list[str]) -> None:
    """Raise ConfigError with a suggestion for a verb or a flag that does not exist."""
    if not args or args[0].startswith("-"):
        return
    verb = args[0]
    if verb not in VERBS:
        raise ConfigError(
            f"There is no verb '{verb}'.{suggest(verb, VERBS)}",
            expected="one of " + ", ".join(VERBS),
            do="`selftaught --help` lists them with one line each.",
        )
    if os.environ.get("WORLD_SIZE", "1") != "1" and verb not in MANY:
        raise ConfigError(
            f"`selftaught {verb}` runs in one process, and torchrun started {os.environ['WORLD_SIZE']}.",
            expected="train or resume, under torchrun",
            do="Train with torchrun; then give the run to `learn --need features=RUN`, `evaluate` and the others without it.",
        )
    known = [name for name in flags(verb) if name.startswith("--")] + ["--help"]
    for word in args[1:]:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and len(name) > 2 and name not in known:
            raise ConfigError(
                f"`selftaught {verb}` has no flag '{name}'.{suggest(name, known)}",
                expected="one of " + ", ".join(sorted(known)),
                do=f"`selftaught {verb} --help` explains them.",
            )


def _print_fields(name: str, method: Any) -> None:
    from selftaught.core.config import field_help, to_json
    from selftaught.registry import find

    print(f"{name}: {find(name).summary}")
    needs = ", ".join(f"{need} (default {default})" for need, default in method.needs.items())
    print(f"needs: {needs or 'nothing'}\n\nfields for --set, with their values at size small:")
    values = to_json(method.sizes["small"])
    for field, text in field_help(method.Config).items():
        print(f"  {field}={values.get(field)}\n      {' '.join(text.split())}")


if __name__ == "__main__":
    main()
