"""The speed of one GPU: training steps, a whole small recipe, and loading from JPEG files. One command, no download.

    python -m benchmarks.gpu                          everything
    python -m benchmarks.gpu --part step --model b16  a part of it
    python -m benchmarks.gpu --part cifar --cifar DIR  on CIFAR-10 in Parquet files instead of noise of its size
    python -m benchmarks.gpu --tiny --device cpu      does it run? (its figures mean nothing)

`step`: MAE pre-training of ViT-B/16, L/16 and H/14 at 224 px in bf16, compiled, with fused attention and optimiser, at
the batch that is fastest, beside transformers' ViTMAE; FLOPs are those that the model needs, against the rate of a
large product. `cifar`: 300 epochs of the recipe of 192x12 + 192x4 at patch 2, batch 4096, the images on the GPU.
`feed`: how long a step of ViT-B/16 waits for photographs, and for pre-shrunk ones, and how many the cores load without
a GPU.

Neither hydra nor wandb is imported.
"""

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestants import B16, CIFAR, H14, L16, TINY, Ours, Size, Step, contestant
from benchmarks.loader import Memory, folder_data, photographs
from benchmarks.measure import arguments, interleave, matmul_rate, rate, save, show
from vitmae.data.crops import View
from vitmae.data.loader import Loader
from vitmae.data.readers import FixedSizeReader
from vitmae.data.samplers import ShuffledRequests
from vitmae.data.shrink import Shrinking, shrink_folder
from vitmae.data.sources.parquet import Parquet
from vitmae.data.splits import MemoryImages
from vitmae.models.objective import training_flops
from vitmae.recipe import Recipe, build_schedule

MODELS = {"b16": B16, "l16": L16, "h14": H14}
_BATCHES = (64, 128, 256, 512, 1024)
_CIFAR_BATCH, _CIFAR_LR, _CIFAR_WARMUP = 4096, 1.5e-4, 0.1


def wait(device: str) -> None:
    """Wait until the GPU is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def finished(step: Step, device: str, steps: int) -> Callable[[], None]:
    """Take so many steps, and wait until the last of them is done."""

    def run() -> None:
        for _ in range(steps):
            step()
        wait(device)

    return run


def best_batch(name: str, size: Size, batches: tuple[int, ...], device: str) -> tuple[Step, int] | None:
    """The compiled step with the most images a second among the batches that fit, and its batch."""
    found: tuple[float, int] | None = None
    for batch in batches:
        try:
            images_per_s = batch / _seconds(_compiled(name, size, batch, device), device)
        except torch.cuda.OutOfMemoryError:
            break
        finally:
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
        if found and images_per_s < 0.98 * found[0]:
            break
        found = max(found or (0.0, 0), (images_per_s, batch))
    return (_compiled(name, size, found[1], device), found[1]) if found else None


def _compiled(name: str, size: Size, batch: int, device: str) -> Step:
    torch.compiler.reset()  # after another batch size, torch would compile for variable sizes, which is slower
    step = contestant("mae", name, size, batch, bf16=True, device=device)
    step.compile()
    return step


def _seconds(step: Step, device: str, steps: int = 3) -> float:
    run = finished(step, device, steps)
    run()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / steps


def steps(models: list[str], device: str, peak: float, rounds: int, tiny: bool) -> dict[str, Any]:
    """Images a second of each model, this project and transformers in turn, each at its best batch."""
    results: dict[str, Any] = {}
    for model in models:
        size, batches = (TINY, (2, 4)) if tiny else (MODELS[model], _BATCHES)
        best = {name: best_batch(name, size, batches, device) for name in ("vitmae", "transformers")}
        if best["vitmae"] is None:
            print(f"\n{model}: not even a batch of {batches[0]} fits")
            continue
        module = best["vitmae"][0].module
        assert isinstance(module, Ours)
        flops = training_flops(module.objective)
        running = {name: finished(pair[0], device, 1 if tiny else 10) for name, pair in best.items() if pair}
        timings = interleave(running, "vitmae", rounds)
        rows, figures = [], {}
        for name, timing in timings.items():
            batch = best[name][1]  # type: ignore[index]
            images_per_s = batch * (1 if tiny else 10) / timing.median
            share = images_per_s * flops / peak
            rows.append([name, str(batch), rate(images_per_s), f"{50 * timing.spread:.0f} %", f"{100 * share:.0f} %"])
            figures[name] = {"batch": batch, "images_per_s": images_per_s, "share": share, "timing": timing}
        show(f"MAE {model}, bf16, compiled", ["", "batch", "images/s", "±", "of the product's rate"], rows)
        if device == "cuda":
            figures["peak_memory"] = torch.cuda.max_memory_allocated()
        results[model] = figures
    return results


def cifar(path: Path | None, epochs: int, device: str, tiny: bool) -> dict[str, Any]:
    """Seconds of the whole recipe, the images on the GPU; with real images also that the loss fell."""
    if path is None:
        images = Memory(64 if tiny else 50_000).images
    else:
        loaded = Parquet().load(str(path), (32, 32), 3).train
        from vitmae.data.preload import take_in

        taken = take_in(loaded, 3, skip_unreadable=False)
        assert isinstance(taken, MemoryImages)
        images = taken
    batch = 16 if tiny else _CIFAR_BATCH
    step = contestant("mae", "vitmae", TINY if tiny else replace(CIFAR, patch_size=2), 2, bf16=True, device=device)
    step.compile()
    module = step.module
    assert isinstance(module, Ours)
    view = View((32, 32), "none")  # the recipe augments nothing
    reader = FixedSizeReader(images.to(torch.device(device)), torch.arange(len(images)), view, 0)
    loader = Loader(reader, ShuffledRequests(len(images), batch, 0), 0, pin_memory=False)
    total = epochs * len(loader)
    peak_lr = _CIFAR_LR * batch / 256
    for group in step.optimizer.param_groups:
        group["lr"] = peak_lr
    schedule = build_schedule(step.optimizer, Recipe(), peak_lr, round(_CIFAR_WARMUP * total), total)
    losses, start, first = [], time.perf_counter(), 0.0
    for epoch in range(epochs):
        for given in loader:
            step.inputs = (given,)
            step()
            schedule.step()
        losses.append(module.objective.last_metrics["loss"])
        if epoch == 0:
            wait(device)
            first = time.perf_counter() - start  # it compiles
    wait(device)
    seconds = time.perf_counter() - start
    curve = torch.stack(losses).float().cpu().tolist()
    print(
        f"\nCIFAR-10's recipe at patch 2, {epochs} epochs of {len(images)} images: {seconds:.0f} s (the first epoch, "
        f"with compiling, {first:.0f} s); loss {curve[0]:.3f} to {curve[-1]:.3f}"
    )
    return {"epochs": epochs, "images": len(images), "seconds": seconds, "first_epoch": first, "losses": curve}


def feed(device: str, workers: int, count: int, batch: int, tiny: bool) -> dict[str, Any]:
    """The share of its time that a step waits for photographs, and what the cores load, of originals and shrunk."""
    step = _compiled("vitmae", TINY if tiny else B16, batch, device)
    results: dict[str, Any] = {"workers": workers, "batch": batch}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        originals, shrunk = Path(folder) / "originals", Path(folder) / "shrunk"
        photographs(originals, count)
        shrink_folder(originals, shrunk, Shrinking(256), max(1, workers))
        for name, path in {"originals": originals, "pre-shrunk": shrunk}.items():
            data = folder_data(path, batch, workers)
            delivered = _loop(data.train_dataloader(), None, device, tiny)
            trained = _loop(data.train_dataloader(), step, device, tiny)
            rows.append([name, rate(delivered[0]), rate(trained[0]), f"{100 * trained[1]:.1f} %"])
            results[name] = {
                "loader_images_per_s": delivered[0],
                "training_images_per_s": trained[0],
                "waiting_share": trained[1],
            }
    show(
        f"JPEG files to ViT-B/16, {workers} workers, batch {batch}",
        ["files", "delivered, images/s", "trained, images/s", "the step waits"],
        rows,
    )
    return results


def _loop(loader: Loader, step: Step | None, device: str, tiny: bool, epochs: int = 3) -> tuple[float, float]:
    """Images a second over some epochs, the first batch of all left out, and the share of time without a batch."""
    waited, images, start = 0.0, 0, 0.0
    for given in _timed(loader, epochs):
        if isinstance(given, float):
            waited += given if start else 0.0
            continue
        if step is not None:
            moved = given.images.to(device, non_blocking=True)
            moved = moved[..., :32, :32] if tiny else moved
            step.inputs = (given._replace(images=moved, keys=given.keys.to(device, non_blocking=True)),)
            step()
            wait(device)  # the rest of the time is waiting for data
        if not start:
            start = time.perf_counter()  # workers have started, and the step is compiled
        else:
            images += len(given.images)
    seconds = time.perf_counter() - start
    return images / seconds, waited / seconds


def _timed(loader: Loader, epochs: int) -> Iterator[Any]:
    """Of each batch first the seconds that were waited for it, then the batch."""
    for _ in range(epochs):
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            given = next(batches, None)
            yield time.perf_counter() - start
            if given is None:
                break
            yield given


def main(arguments_given: list[str] | None = None) -> int:
    """Run the chosen parts, print tables, and write results/gpu.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--part", action="append", choices=["step", "cifar", "feed"], help="repeatable; default: all")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="repeatable; default: all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes that go through everything")
    parser.add_argument("--cifar", type=Path, help="a folder of CIFAR-10's Parquet files")
    parser.add_argument("--cifar-epochs", type=int, default=300)
    parser.add_argument("--photographs", type=int, default=4096, help="that are made to feed from")
    parser.add_argument("--feed-batch", type=int, default=256)
    settings = parser.parse_args(arguments_given)
    settings.quick = settings.tiny
    tiny, device = settings.tiny, settings.device
    torch.set_float32_matmul_precision("high")
    parts = settings.part or ["step", "cifar", "feed"]
    results: dict[str, Any] = {}
    if "step" in parts:
        size = 256 if tiny else 8192
        peak = matmul_rate(torch.bfloat16, device, size)
        print(f"bf16 product of {size} x {size}: {peak / 1e12:.0f} TFLOP/s")
        results["matmul_flops"] = peak
        models = settings.model or list(MODELS)
        results["step"] = steps(models[:1] if tiny else models, device, peak, 1 if tiny else settings.rounds, tiny)
    if "cifar" in parts:
        results["cifar"] = cifar(settings.cifar, 2 if tiny else settings.cifar_epochs, device, tiny)
    if "feed" in parts:
        count, batch = (24, 4) if tiny else (settings.photographs, settings.feed_batch)
        results["feed"] = feed(device, 1 if tiny else settings.threads, count, batch, tiny)
    save("gpu", settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
