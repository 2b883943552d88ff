"""The time of a step as images, batches, masks and models grow, against the matrix products that it needs.

    python -m benchmarks.scale

One setting at a time is changed from ViT-S/16 at 224 px, batch 8, 75 % hidden, in bf16 where the processor has it. If
time were proportional to FLOPs, the last column would be constant.
"""

import sys
from dataclasses import replace
from typing import Any

import torch

from benchmarks.contestants import S16, TINY, Ours, Size, contestant
from benchmarks.measure import arguments, interleave, rate, save, show, start_with_large_pages
from vitmae.models.objective import training_flops

_BATCH = 8
_BASE = replace(S16, decoder=(384, 4, 6))

Point = tuple[Size, int]


def axes(base: Size, batch: int) -> dict[str, dict[str, Point]]:
    """The settings that change, and their values: name -> setting -> sizes and batch."""
    side, depth = base.img_size, base.depth
    return {
        "image size": {
            f"{size} px": (replace(base, img_size=size), batch) for size in (side // 2, side, side * 3 // 2)
        },
        "batch": {f"{size} images": (base, size) for size in (max(1, batch // 4), batch, batch * 4)},
        "mask ratio": {
            f"{share:.0%} hidden": (replace(base, mask_ratio=share), batch) for share in (0.25, 0.5, 0.75, 0.9)
        },
        "depth": {
            f"{blocks} blocks": (replace(base, depth=blocks), batch) for blocks in (depth // 2, depth, depth * 2)
        },
    }


def main(arguments_given: list[str] | None = None) -> int:
    """Time a step at each point, axis by axis, print tables, and write results/scale.json."""
    settings = arguments(__doc__ or "").parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    from vitmae.runs.preflight import resolve_precision

    bf16 = resolve_precision("auto", "cpu") == "bf16-mixed"
    results: dict[str, Any] = {"bf16": bf16}
    base, batch = (TINY, 2) if settings.quick else (_BASE, _BATCH)
    for axis, points in axes(base, batch).items():
        steps = {name: contestant("mae", "vitmae", size, images, bf16=bf16) for name, (size, images) in points.items()}
        reference = next(iter(steps))
        timings = interleave(steps, reference, 1 if settings.quick else settings.rounds)
        rows, figures = [], {}
        for name, (_, images) in points.items():
            module = steps[name].module
            assert isinstance(module, Ours)
            flops = training_flops(module.objective)
            seconds = timings[name].median / images
            rows.append([name, f"{flops / 1e9:.2f}", f"{1e3 * seconds:.1f}", rate(flops / seconds / 1e9)])
            figures[name] = {"flops": flops, "batch": images, "timing": timings[name]}
        show(f"MAE by {axis}, {settings.threads} thread(s)", [axis, "GFLOP an image", "ms an image", "GFLOP/s"], rows)
        results[axis] = figures
    save("scale", settings, results)
    return 0


if __name__ == "__main__":
    start_with_large_pages()
    sys.exit(main())
