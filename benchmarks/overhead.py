"""The Trainer's loop, as `python -m vitmae.train` runs it, against a bare loop over the same module and batches.

    python -m benchmarks.overhead

The default job with the smallest of models, so that the difference is not lost in the model's own time; what it is of a
step of ViT-B/16 is worked out from a bare step of that. A step is timed from one call of `training_step` to the next
inside an epoch: logging, callbacks, the schedule and the progress bar are in it; validation and checkpoints at the end
of an epoch are not.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from benchmarks.contestants import B16, Ours, Step
from benchmarks.measure import Timing, arguments, clock_for, save, show, start_with_large_pages
from vitmae.backbones.timm_vit import TimmViT
from vitmae.data.datamodule import ImageData
from vitmae.data.digits import Digits
from vitmae.models.mae import MAE
from vitmae.training.optim import Recipe

_BATCH, _EPOCH = 64, 17  # of conf/data/digits.yaml: 1,149 training images are 17 batches


def digits() -> ImageData:
    """The default job's data."""
    data = ImageData(Digits(), img_size=8, in_chans=1, batch_size=_BATCH, val_fraction=0.2)
    data.prepare()
    return data


def smallest() -> MAE:
    """A model that takes hardly any time."""
    backbone = TimmViT("vit_tiny_patch16_224", 8, in_chans=1, patch_size=2, embed_dim=16, depth=1, num_heads=1)
    return MAE(backbone, Recipe(), mean=[0.3], std=[0.37], norm_pix_loss=False, decoder_depth=1)


def entries(watched: type, run: Callable[[], Any]) -> list[float]:
    """When `training_step` of a class was called while something ran, in the seconds of the benchmark's clock."""
    clock, times, original = clock_for(torch.get_num_threads()), [], watched.training_step

    def step(self: Any, *given: Any) -> Any:
        times.append(clock())
        return original(self, *given)

    watched.training_step = step
    try:
        run()
    finally:
        watched.training_step = original
    return times


def by_trainer(epochs: int, folder: str) -> None:
    """The default job with that model, without what it does between epochs."""
    from vitmae.train import main

    settings = [f"runs={folder}", "logger=csv", f"trainer.max_epochs={epochs}", "trainer.num_sanity_val_steps=0",
                "trainer.accelerator=cpu", "backbone.embed_dim=16", "backbone.depth=1", "backbone.num_heads=1",
                "model.decoder_depth=1", f"trainer.check_val_every_n_epoch={epochs}", "probe.every_n_epochs=100000",
                "panel.every_n_epochs=100000"]  # fmt: skip
    if main(settings):
        raise RuntimeError("the job failed: see above")


def by_hand(epochs: int, bf16: bool) -> None:
    """The same steps in a plain loop."""
    from vitmae.backbones.backbone import use_fused_attention

    model, data = smallest(), digits()
    use_fused_attention(model, not bf16)
    ours = Ours.__new__(Ours)
    torch.nn.Module.__init__(ours)
    ours.objective = model
    step = Step(ours, (), bf16=bf16)
    for _ in range(epochs):
        for batch in data.train_dataloader():
            step.inputs = (batch,)
            step()


def mean_step(times: list[float], epoch: int) -> float:
    """Seconds from step to step inside epochs, the first epoch left out."""
    inside = [later - earlier for i, (earlier, later) in enumerate(pairwise(times), 1)
              if i % epoch and i > epoch]  # fmt: skip
    return sum(inside) / len(inside)


def b16_step(batch: int, rounds: int) -> float:
    """Seconds of a bare step at ViT-B/16, to see what share the overhead is of it."""
    from vitmae.batch import Batch
    from vitmae.randomness import fold_indices

    ours = Ours("mae", B16, bf16=True)
    images = torch.randint(256, (batch, 3, 224, 224), dtype=torch.uint8)
    step = Step(ours, (Batch(images, torch.zeros(batch).long(), fold_indices(0, torch.arange(batch)), 0),), bf16=True)
    clock = clock_for(torch.get_num_threads())
    step()
    start = clock()
    for _ in range(rounds):
        step()
    return (clock() - start) / rounds


def main(arguments_given: list[str] | None = None) -> int:
    """Alternate between the two loops, print what a step costs in each, and write results/overhead.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--epochs", type=int, default=12, help="of 17 steps each, per round")
    parser.add_argument("--b16-batch", type=int, default=16, help="images of the step that is compared with; 0: none")
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    if not torch.cuda.is_available():  # the bare loop's optimiser may ask for a GPU at no cost from the start too
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    from vitmae.training.fit import resolve_precision

    bf16 = resolve_precision("auto", "cpu") == "bf16-mixed"
    epochs, rounds = (2, 1) if settings.quick else (settings.epochs, settings.rounds)
    trainer, bare = [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            bare.append(mean_step(entries(MAE, lambda: by_hand(epochs, bf16)), _EPOCH))
            trainer.append(mean_step(entries(MAE, lambda: by_trainer(epochs, folder)), _EPOCH))
    ratios = [b / t for b, t in zip(bare, trainer, strict=True)]
    timings = {"bare loop": Timing(bare, [1.0] * rounds), "Trainer": Timing(trainer, ratios)}
    rows = [[name, f"{1e3 * timing.median:.3f}", f"{50 * timing.spread:.0f} %"] for name, timing in timings.items()]
    show(f"A step of the smallest model, {settings.threads} thread(s)", ["loop", "ms a step", "±"], rows)
    extra = sorted(t - b for b, t in zip(bare, trainer, strict=True))[rounds // 2]
    print(f"\nthe Trainer adds {1e3 * extra:.2f} ms a step")
    results: dict[str, Any] = {"timings": timings, "added_s": extra}
    if settings.b16_batch and not settings.quick:
        step = b16_step(settings.b16_batch, 2)
        print(f"which is {100 * extra / step:.2f} % of a step at ViT-B/16, batch {settings.b16_batch} ({step:.2f} s)")
        results |= {"b16_step_s": step, "b16_batch": settings.b16_batch}
    save("overhead", settings, results)
    return 0


if __name__ == "__main__":
    start_with_large_pages()
    sys.exit(main())
