"""Cost of a teacher: a step of `sohes train --phase correct` beside one of `--phase instruct`, time and memory.

    python benchmarks/correct.py --out benchmarks/results/correct_cpu.json
    python benchmarks/correct.py --device cuda --out benchmarks/results/correct_cuda.json

Batches are two random images with nested ellipses as labels: 40 of them at 256 px on a CPU, 100 at 1,024 px on a GPU.
The ratio of a row is how many times as fast as a step of phase 2 it is, so below 1. `sohes bench correct` has the same
numbers, on a CPU for `tiny` only.
"""

from __future__ import annotations

from sohes_benchmarks.stages.correct import BENCHMARK
from sohes_benchmarks.stages.script import options, run_stage
from sohes_benchmarks.stages.train import LABELS, SIDES, step_case

from sohes_cli.training.config import TRAIN_PRESETS


def main() -> None:
    """Measure the steps and write the table."""
    arguments = options(__doc__).parse_args()
    device = arguments.device
    sizes = {"side": SIDES[device], "labels": LABELS[device]}
    chosen = [step_case(preset, device, **sizes, stage="correct") for preset in arguments.presets or TRAIN_PRESETS]
    run_stage(BENCHMARK, arguments, () if arguments.quick else chosen)


if __name__ == "__main__":
    main()
