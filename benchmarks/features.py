"""Frozen features: extracting them, and their nearest neighbours.

    python -m benchmarks.features

ViT-B/16 at 224 px: `vitmae.probes.features` in the precision that a run has on this machine, and in float32, against
timm's model in float32 eager. 50,000 x 50,000 features of width 768: `vitmae.probes.knn` against scikit-learn, which
must find the same neighbours.
"""

import sys
from typing import Any

import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.contestants import B16, TINY, backbone, timm_vit
from benchmarks.measure import (
    arguments,
    interleave,
    peak_memory,
    rate,
    resident_memory,
    save,
    show,
    start_with_large_pages,
)
from vitmae.backbones.blocks import choose_kernels
from vitmae.batch import Batch
from vitmae.probes import knn
from vitmae.probes.features import extract
from vitmae.runs.preflight import resolve_precision

_K = 20


def extraction(quick: bool, batch: int, rounds: int) -> dict[str, Any]:
    """Images a second of each way to the same features."""
    size = TINY if quick else B16
    ours, theirs = backbone(size), timm_vit(size).model.eval()
    images = torch.randint(256, (batch, 3, size.img_size, size.img_size), dtype=torch.uint8)
    given = Batch(images, torch.zeros(batch, dtype=torch.int64), torch.arange(batch), 0)
    bf16 = resolve_precision("auto", "cpu") == "bf16-mixed"

    def normalize(images: torch.Tensor) -> torch.Tensor:
        return images.float().sub(114.75).div(57.4)

    def encode(autocast: torch.dtype | None) -> None:
        choose_kernels(ours, in_cpu_bf16=autocast is not None)
        extract(ours, [given], normalize, autocast=autocast)

    def by_timm() -> None:
        with torch.inference_mode():
            theirs.forward_features(normalize(images)).mean(1)

    contestants = {"timm, float32": by_timm, "vitmae, float32": lambda: encode(None)}
    if bf16:
        contestants["vitmae, bf16"] = lambda: encode(torch.bfloat16)
    timings = interleave(contestants, "timm, float32", rounds)
    rows = [
        [name, rate(batch / timing.median), f"{50 * timing.spread:.0f} %", f"{timing.ratio:.2f}"]
        for name, timing in timings.items()
    ]
    show(f"Features of ViT-B/16, batch {batch}", ["contestant", "images/s", "±", "to timm"], rows)
    return {"batch": batch, "timings": timings}


def neighbours(count: int, width: int, rounds: int) -> dict[str, Any]:
    """Seconds to find the k nearest neighbours of each feature among as many others, and the memory that this takes.

    Raises:
        RuntimeError: if the neighbours differ by more than float32's rounding explains.
    """
    drawn = torch.Generator().manual_seed(0)
    centres = torch.randn(100, width, generator=drawn)
    bank, queries = (
        centres[torch.randint(100, (count,), generator=drawn)] + torch.randn(count, width, generator=drawn)
        for _ in range(2)
    )
    unit = [torch.nn.functional.normalize(part).numpy() for part in (bank, queries)]
    found: dict[str, Any] = {}

    def by_scikit_learn() -> None:
        index = NearestNeighbors(n_neighbors=_K, algorithm="brute", metric="cosine").fit(unit[0])
        found["theirs"] = index.kneighbors(unit[1], return_distance=False)

    def here() -> None:
        found["ours"] = torch.cat([ids for _, ids in knn.neighbours(queries, bank, _K)]).numpy()

    before = resident_memory()
    here()
    held = max(0, peak_memory() - before)
    timings = interleave({"scikit-learn": by_scikit_learn, "vitmae": here}, "scikit-learn", rounds, warmup=0)
    same = float((found["ours"] == found["theirs"]).mean())
    rows = [
        [name, f"{timing.median:.2f}", f"{50 * timing.spread:.0f} %", f"{timing.ratio:.2f}"]
        for name, timing in timings.items()
    ]
    show(f"{_K} nearest of {count} x {count} features of width {width}", ["", "s", "±", "to scikit-learn"], rows)
    print(
        f"\n{100 * same:.3f} % of the neighbours are the same, in order; vitmae's working memory {held / 2**30:.2f} GiB"
    )
    if same < 0.999:
        raise RuntimeError(f"only {100 * same:.2f} % of the neighbours agree")
    return {"count": count, "width": width, "same": same, "held_bytes": held, "timings": timings}


def main(arguments_given: list[str] | None = None) -> int:
    """Compare, print tables, and write results/features.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=16, help="images whose features are extracted at once")
    parser.add_argument("--count", type=int, default=50_000, help="features on either side of the neighbours")
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    batch, count, rounds = (2, 500, 1) if settings.quick else (settings.batch, settings.count, settings.rounds)
    found = neighbours(count, 768, 1 if settings.quick else max(1, rounds // 2))
    save("features", settings, {"extraction": extraction(settings.quick, batch, rounds), "knn": found})
    return 0


if __name__ == "__main__":
    start_with_large_pages()
    sys.exit(main())
