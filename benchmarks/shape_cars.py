"""Solid objects from drawn cars seen from all around, whose viewpoints are those that `viewpoint` finds; writes shape_gan_cars.json
and shape_autoencoder_cars.json into benchmarks/results.

    python benchmarks/shape_cars.py [--methods shape_gan shape_autoencoder] [--runs runs/shape3d] [--seeds 0 1 2]
                                     [--again] [--cluttered] [--loose]

For every seed 2,000 cars to learn from and 500 held out, before a plain background, those of `shape3d.py --methods viewpoint`; that
method's run tells the generator viewpoints, without labels; the encoder learns them as well. Set by hand, since azimuths alone are
estimated: the angle of view, the range of the camera's heights and that of the light, as the world has them. The start is a ball. The
control has learning rate 0. --again trains a second generator that is told the viewpoints of the first encoder (first seed), --loose
trains an encoder without tight_weight, --cluttered one of each method before cluttered backgrounds. Results are written after every
training; trainings that were stopped continue, finished ones are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measuring import write
from shape3d import CONTROL_STEPS, SHOWN, one_run, pictures, rows_of

CARS = (
    "all_sides=true", "fov_rad=0.5236", "elevation=(0.05,0.40)", "pose_noise_rad=0.0", "azimuth_error_rad=0.07",
    "even_azimuths=true",
    "ambient=(0.45,0.60)", "diffuse=(0.40,0.55)", "light_spread=(0.5,0.3,0.7)", "start=(0.45,0.45,0.45)", "start_lr_scale=10.0",
    "area=(0.05,0.45)", "thin_least=0.2", "rough_weight=10.0", "rough_scaled=true", "shared_lr_scale=5.0",
    "real_pose_weight=2.0", "background_lr_scale=0.03", "hidden_weight=3.0", "lr=1e-3", "r1=0.2", "jitter_px=1",
    "paint_levels=2", "paint_lr_scale=0.1", "shape_code=6", "texture_code=8", "code_weight=1.0",
)  # fmt: skip
FOUND = ("generator_lr_frac=1.0", "told_weight=2.0", "told_last_frac=0.25", "tight_weight=1.5", "hidden_weight=3.0", "rough_weight=5.0")
STEPS = {"shape_gan": 2400, "shape_autoencoder": 1000}
AGAIN = ("elevation=(0.0,0.0)", "even_azimuths=false", "azimuth_error_rad=0.03")
"""A second round is told the viewpoints, elevation and all, of the encoder that was learned on the first."""
LOOSE = "tight_weight 0, 900 steps"
DATA = "cars from all around, 32 px"
CLUTTERED = {
    "shape_gan": ("background_lr_scale=1.0", "background_code=16", "hidden_weight=0.0"),
    "shape_autoencoder": ("hidden_weight=0.0",),
}
"""Before backgrounds that are worth learning."""
CLUTTERED_DATA = "cars from all around, cluttered backgrounds, 32 px"


def shown(method: str) -> tuple[str, ...]:
    """The scores of heads; correlation is that of the whole circle."""
    return tuple("circular_correlation" if name == "azimuth_correlation" else name for name in SHOWN[method] if name != "area_error") + (
        ("patch_kid",) if method == "shape_gan" else ("depth_width_correlation",)
    )


def chain(
    method: str, folder: Path, seed: int, name: str, settings: tuple[str, ...] = (), steps: int | None = None, told_by: str = "",
    background: str = "plain",
) -> dict[str, Any]:
    """One run of a method on the cars of a seed, and of what it needs; `told_by`: another run in the place of what that usually is."""
    data = pictures(folder / f"cars_{background}-{seed}", "cars", 2500, seed, background)
    pose, solids = folder / f"viewpoint-{background}-{seed}", folder / (told_by or f"cars-shape_gan-{seed}")
    one_run("viewpoint", data, pose, seed)
    told, need = (CARS, f"pose={folder / told_by if told_by else pose}") if method == "shape_gan" else (FOUND, f"generator={solids}")
    return one_run(method, data, folder / name, seed, (*told, *settings), steps or STEPS[method], (need,))


def told(
    method: str, seeds: list[int], runs: list[dict[str, Any]], others: dict[str, dict[str, Any]],
    cluttered: list[dict[str, Any]] | None = None,
) -> None:  # fmt: skip
    """Write the table as far as it is known."""
    seconds = [run["seconds"] for run in runs]
    more = {} if None in seconds else {"seconds": sum(seconds), "clock": "processor time of the trainings with seeds"}
    rows = rows_of(method, DATA, runs, others, shown(method))
    if cluttered:
        rows += rows_of(method, CLUTTERED_DATA, cluttered, {}, shown(method))
    write(f"{method}_cars", rows, seeds=seeds[: len(runs)], **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["shape_gan", "shape_autoencoder"], choices=["shape_gan", "shape_autoencoder"])
    parser.add_argument("--runs", type=Path, default=Path("runs/shape3d"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="also a second round: one generator told the viewpoints of the encoder")
    parser.add_argument("--cluttered", action="store_true", help="also one of each method on cars before cluttered backgrounds")
    parser.add_argument("--loose", action="store_true", help="also one encoder without tight_weight, for 900 steps")
    arguments = parser.parse_args()
    for method in arguments.methods:
        runs: list[dict[str, Any]] = []
        others: dict[str, dict[str, Any]] = {}
        for seed in arguments.seeds:
            runs.append(chain(method, arguments.runs, seed, f"cars-{method}-{seed}"))
            told(method, arguments.seeds, runs, others)
        others["control (lr 0)"] = chain(method, arguments.runs, arguments.seeds[0], f"cars-{method}-control", ("lr=0.0",), CONTROL_STEPS)
        told(method, arguments.seeds, runs, others)
        if arguments.again and method == "shape_gan":
            first, encoder = arguments.seeds[0], f"cars-shape_autoencoder-{arguments.seeds[0]}"
            chain("shape_autoencoder", arguments.runs, first, encoder)
            others["second round"] = chain(method, arguments.runs, first, f"cars-{method}-again", AGAIN, told_by=encoder)
            told(method, arguments.seeds, runs, others)
        if arguments.loose and method == "shape_autoencoder":
            others[LOOSE] = chain(method, arguments.runs, arguments.seeds[0], f"cars-{method}-loose", ("tight_weight=0.0",), 900)
            told(method, arguments.seeds, runs, others)
        if arguments.cluttered:
            first, generator = arguments.seeds[0], "cars-shape_gan-cluttered"
            one = chain("shape_gan", arguments.runs, first, generator, CLUTTERED["shape_gan"], background="cluttered")
            if method == "shape_autoencoder":
                found = CLUTTERED[method]
                one = chain(method, arguments.runs, first, f"cars-{method}-cluttered", found, told_by=generator, background="cluttered")
            told(method, arguments.seeds, runs, others, [one])


if __name__ == "__main__":
    main()
