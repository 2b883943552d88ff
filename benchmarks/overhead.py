"""The Trainer's loop, as `python -m vitmae.train` runs it, against a bare loop over the same module and batches.

    python -m benchmarks.overhead

The default job with the smallest model, so that the difference is large beside the model's own time. The target is at
most 2 % of a step of MAE with an encoder of ViT-S at CIFAR's size (32 px, patches of 4), which is timed separately. A
round is an epoch of the Trainer and, right after it in the same process, an epoch of the bare loop: they are a tenth of
a second apart. A step is timed from one call of `training_step` to the next within an epoch: this includes logging,
callbacks, the schedule and the progress bar, but not validation and checkpoints at the end of an epoch.
"""

import sys
import tempfile
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from benchmarks.contestants import S_CIFAR, Ours, Step, contestant
from benchmarks.measure import Timing, arguments, clock_for, interleave, save, show, start_with_large_pages
from vitmae.backbones.timm_vit import TimmViT
from vitmae.data.datamodule import ImageData
from vitmae.data.sources.digits import Digits
from vitmae.models.mae import MAE
from vitmae.recipe import Recipe
from vitmae.runs.preflight import resolve_precision
from vitmae.train import main as main_of_train


def digits() -> ImageData:
    """The default job's data."""
    data = ImageData(Digits(), img_size=8, in_chans=1, batch_size=64, val_fraction=0.2)
    data.prepare()
    return data


def smallest() -> MAE:
    """A model that takes hardly any time."""
    backbone = TimmViT("vit_tiny_patch16_224", 8, in_chans=1, patch_size=2, embed_dim=16, depth=1, num_heads=1)
    return MAE(backbone, Recipe(), mean=[0.3], std=[0.37], norm_pix_loss=False, decoder_depth=1)


class BareLoop:
    """The same steps in a plain loop."""

    def __init__(self, bf16: bool) -> None:
        self.data = digits()
        self.step = Step(Ours(smallest(), bf16=bf16), (), bf16=bf16)

    def epoch(self) -> None:
        """Every training image once."""
        for batch in self.data.train_dataloader():
            self.step.inputs = (batch,)
            self.step()


def in_turn(rounds: int, bf16: bool, folder: str) -> tuple[list[float], list[float]]:
    """Seconds a step, of the bare loop and of the Trainer's: one of each a round, after a round to warm up.

    Args:
        rounds: epochs of each.
        bf16: the precision of the bare loop; the Trainer finds its own.
        folder: of the run.
    """
    clock, bare, original = clock_for(torch.get_num_threads()), BareLoop(bf16), MAE.training_step
    times: list[float] = []
    by_hand: list[float] = []
    by_trainer: list[float] = []

    def step(objective: MAE, *given: Any) -> Any:
        times.append(clock())
        return original(objective, *given)

    def epoch_ends(objective: MAE) -> None:
        by_trainer.append(_mean_step(times))
        times.clear()
        bare.epoch()
        by_hand.append(_mean_step(times))
        times.clear()

    MAE.training_step, MAE.on_train_epoch_end = step, epoch_ends
    try:
        _train(rounds + 1, folder)
    finally:
        MAE.training_step = original
        del MAE.on_train_epoch_end
    return by_hand[1:], by_trainer[1:]


def _train(epochs: int, folder: str) -> None:
    """The default job with the smallest model, without what it does between epochs."""
    settings = [
        f"runs={folder}",
        "logger=csv",
        f"trainer.max_epochs={epochs}",
        "trainer.num_sanity_val_steps=0",
        "trainer.accelerator=cpu",
        "backbone.embed_dim=16",
        "backbone.depth=1",
        "backbone.num_heads=1",
        "model.decoder_depth=1",
        f"trainer.check_val_every_n_epoch={epochs}",
        "probe.every_n_epochs=100000",
        "panel.every_n_epochs=100000",
    ]
    if main_of_train(settings):
        raise RuntimeError("the job failed: see above")


def _mean_step(times: Sequence[float]) -> float:
    """Seconds from the first to the last step of an epoch, a step."""
    return (times[-1] - times[0]) / (len(times) - 1)


def main(arguments_given: list[str] | None = None) -> int:
    """Run the two loops in turn, print the time of a step in each, and write results/overhead.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--target-batch", type=int, default=64, help="images of the step that is compared with; 0: none"
    )
    parser.set_defaults(rounds=200)
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    bf16 = resolve_precision("auto", "cpu") == "bf16-mixed"
    with tempfile.TemporaryDirectory() as folder:
        bare, trainer = in_turn(2 if settings.quick else settings.rounds, bf16, folder)
    ratios = [b / t for b, t in zip(bare, trainer, strict=True)]
    timings = {"bare loop": Timing(bare, [1.0] * len(bare)), "Trainer": Timing(trainer, ratios)}
    rows = [[name, f"{1e3 * timing.median:.3f}", f"{50 * timing.spread:.0f} %"] for name, timing in timings.items()]
    show(f"A step of the smallest model, {settings.threads} thread(s)", ["loop", "ms a step", "±"], rows)
    extra = median(t - b for b, t in zip(bare, trainer, strict=True))
    print(f"\nthe Trainer adds {1e3 * extra:.2f} ms a step")
    results: dict[str, Any] = {"timings": timings, "added_s": extra}
    if settings.target_batch and not settings.quick:
        small = contestant("mae", "vitmae", S_CIFAR, settings.target_batch, bf16=bf16)
        step = interleave({"S": small}, "S", rounds=5)["S"].median
        share = 100 * extra / step
        print(f"which is {share:.2f} % of a step of ViT-S at 32 px, batch {settings.target_batch} ({step:.2f} s)")
        results |= {"target_step_s": step, "target_batch": settings.target_batch}
    save("overhead", settings, results)
    return 0


if __name__ == "__main__":
    start_with_large_pages()
    sys.exit(main())
