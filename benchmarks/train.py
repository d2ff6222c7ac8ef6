"""Cost of a step of `sohes train`: throughput and peak memory, beside transformers' Mask2Former of equal size.

    python benchmarks/train.py --out benchmarks/results/train_cpu.json
    python benchmarks/train.py --device cuda --out benchmarks/results/train_cuda.json

Batches are two random images with nested ellipses as labels: 40 of them at 256 px on a CPU, 100 at 1,024 px on a GPU. A
whole step is timed, from the batch on the host to the new weights. The peer has our backbone, and decoders of equal
width and depth. Our step is also timed with each fast operation replaced by its plain form. All of them are checked
first, then timed in turns; the memory of each is that of a process of its own. `sohes bench train` has the same
numbers, on a CPU for `tiny` only.
"""

from __future__ import annotations

from sohes_benchmarks.stages.script import options, run_stage
from sohes_benchmarks.stages.train import BENCHMARK, LABELS, SIDES, step_case

from sohes_cli.training.config import TRAIN_PRESETS


def main() -> None:
    """Measure the steps and write the table."""
    parser = options(__doc__)
    parser.add_argument(
        "--side", type=int, help="of the images in pixels, a multiple of 32; 256 on a CPU and 1024 on a GPU by default"
    )
    parser.add_argument("--labels", type=int, help="of an image; 40 on a CPU and 100 on a GPU by default")
    parser.add_argument("--images", type=int, default=2, help="of a step")
    arguments = parser.parse_args()
    device = arguments.device
    side, labels = arguments.side or SIDES[device], arguments.labels or LABELS[device]
    chosen = [
        step_case(preset, device, side=side, labels=labels, images=arguments.images)
        for preset in arguments.presets or TRAIN_PRESETS
    ]
    run_stage(BENCHMARK, arguments, () if arguments.quick else chosen)


if __name__ == "__main__":
    main()
