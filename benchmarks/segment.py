"""Throughput and peak memory of `Segmenter`, beside transformers' Mask2Former of equal size.

    python benchmarks/segment.py --out benchmarks/results/segment_cpu.json
    python benchmarks/segment.py --device cuda --out benchmarks/results/segment_cuda.json

From the pixels of a square photograph to masks at its own size, and ours to their forest; loading is not counted.
Weights are random, and the least score is such that a hundred masks pass. The peer has our backbone, decoders of equal
width and depth with the same weights, and its own processor and instance post-processing. Masks are checked first, then
all are timed in turns; the memory of each is that of a process of its own. `sohes bench segment` has the same numbers,
on a CPU for `tiny` only.
"""

from __future__ import annotations

from sohes_benchmarks.stages.script import options, run_stage
from sohes_benchmarks.stages.segment import BENCHMARK, DEFAULT_CASES, segment_case


def main() -> None:
    """Measure the photographs and write the table."""
    parser = options(__doc__)
    parser.add_argument(
        "--sides",
        type=int,
        nargs="+",
        help="of the photograph in pixels, multiples of 32; 480 and on a GPU 1024 by default",
    )
    arguments = parser.parse_args()
    device = arguments.device
    presets = arguments.presets or dict.fromkeys(preset for preset, _ in DEFAULT_CASES[device])
    sides = arguments.sides or dict.fromkeys(side for _, side in DEFAULT_CASES[device])
    chosen = [segment_case(preset, device, side=side) for preset in presets for side in sides]
    run_stage(BENCHMARK, arguments, () if arguments.quick else chosen)


if __name__ == "__main__":
    main()
