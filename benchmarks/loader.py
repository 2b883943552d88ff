"""Images from disk or memory to training batches, against torchvision's and timm's loaders.

    python -m benchmarks.loader                       generated photographs (500 x 375, about 130 kB)
    python -m benchmarks.loader --images FOLDER       your own, in class folders

Random resized crop to 224 px, flip, normalise. First the rate of one core, without workers; then with workers beside a
training step, how long the step waits for data; then an epoch of a set in memory of CIFAR-10's size.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms import v2

from benchmarks.contestants import S16, TINY, contestant
from benchmarks.measure import arguments, interleave, rate, save, show
from vitmae.allocator import keep_freed_memory
from vitmae.data.datamodule import ImageData
from vitmae.data.decode import jpeg_decoder
from vitmae.data.shrink import Shrinking, shrink_folder
from vitmae.data.sources.folder import Folder
from vitmae.data.splits import MemoryImages, Splits
from vitmae.models.objective import Objective

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIZE = 224


def photographs(folder: Path, count: int) -> None:
    """Write JPEG files that decode as slowly as photographs do: soft shapes under fine grain, 500 x 375."""
    drawn = torch.Generator().manual_seed(0)
    for number in range(count):
        soft = F.interpolate(torch.rand(1, 3, 12, 16, generator=drawn), (375, 500), mode="bicubic")[0]
        grain = F.interpolate(torch.randn(1, 1, 375, 500, generator=drawn), scale_factor=1.0)[0]
        pixels = ((soft + 0.055 * grain).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
        place = folder / "train" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:05d}.jpg", quality=90)


def folder_data(path: Path, batch: int, workers: int) -> ImageData:
    """This project's data module on a folder."""
    data = ImageData(
        Folder(),
        path=str(path),
        img_size=_SIZE,
        in_chans=3,
        batch_size=batch,
        num_workers=workers,
        stats={"mean": _MEAN, "std": _STD},
        crop="random_resized",
        hflip=True,
    )
    data.prepare()
    return data


def normalize(images: torch.Tensor, mean: tuple[float, ...] = _MEAN, std: tuple[float, ...] = _STD) -> torch.Tensor:
    """As an objective does, by the batch."""
    statistics = [torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std)]
    holder = type("Statistics", (), {"mean": statistics[0], "std": statistics[1]})
    return Objective.normalize(holder, images)  # type: ignore[arg-type]


def v2_transform() -> v2.Compose:
    """What torchvision's documentation shows."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(_SIZE, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_MEAN, _STD),
        ]
    )


def torchvision_loader(path: Path, batch: int, workers: int) -> DataLoader[Any]:
    """ImageFolder and a DataLoader."""
    return DataLoader(
        ImageFolder(str(path / "train"), v2_transform()), batch, shuffle=True, num_workers=workers, drop_last=True
    )


def timm_loader(path: Path, batch: int, workers: int) -> Any:
    """The loader of timm's training script, without its GPU prefetcher."""
    from timm.data import create_dataset, create_loader

    return create_loader(
        create_dataset("", str(path), split="train"),
        (3, _SIZE, _SIZE),
        batch,
        is_training=True,
        use_prefetcher=False,
        no_aug=False,
        scale=(0.2, 1.0),
        color_jitter=None,
        interpolation="bicubic",
        num_workers=workers,
        persistent_workers=False,
    )


def bare(path: Path) -> Callable[[], int]:
    """Decode with the fastest decoder and resize the whole image, and nothing else."""
    decode = jpeg_decoder()
    files = sorted((path / "train").rglob("*.jpg"))

    def run() -> int:
        for file in files:
            pixels = decode(file.read_bytes(), 3) if decode else np.asarray(Image.open(file))
            image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
            F.interpolate(image[None], (_SIZE, _SIZE), mode="bicubic", antialias=True)
        return len(files)

    return run


def count_images(batches: Iterator[Any]) -> int:
    """Iterate to the end."""
    return sum(len(batch[0]) for batch in batches)


def one_core(path: Path, shrunk: Path, batch: int, rounds: int) -> dict[str, Any]:
    """Images a second of one process without workers."""
    data, small = folder_data(path, batch, 0), folder_data(shrunk, batch, 0)
    count = data.num_train // batch * batch
    files = len(list((path / "train").rglob("*.jpg")))

    def ours(source: ImageData, prepare: Callable[[Tensor], Tensor] = normalize) -> Callable[[], int]:
        return lambda: count_images((prepare(b.images),) for b in source.train_dataloader())

    contestants = {
        "torchvision": lambda: count_images(torchvision_loader(path, batch, 0)),
        "timm": lambda: count_images(timm_loader(path, batch, 0)),
        "vitmae": ours(data),
        "vitmae, pre-shrunk": ours(small),
        "vitmae, bytes": ours(data, lambda images: images),  # as workers return them; a step normalises them
        "bare decode + resize": bare(path),
    }
    timings = interleave(contestants, "torchvision", rounds)
    # counted are the images that each loader returns: incomplete batches are dropped, and a tenth is for validation
    images = {
        "torchvision": files // batch * batch,
        "timm": files // batch * batch,
        "vitmae": count,
        "vitmae, pre-shrunk": count,
        "vitmae, bytes": count,
        "bare decode + resize": files,
    }
    rates = {name: images[name] / timing.median for name, timing in timings.items()}
    rows = [
        [
            name,
            rate(rates[name]),
            f"{50 * timings[name].spread:.0f} %",
            f"{rates[name] / rates['torchvision']:.2f}",
            f"{100 * rates[name] / rates['bare decode + resize']:.0f} %",
        ]
        for name in contestants
    ]
    show("JPEG folder to batches of 224 px, one core", ["loader", "images/s", "±", "to torchvision", "of bare"], rows)
    return {"images": images, "images_per_s": rates, "timings": timings}


def waiting(path: Path, batch: int, workers: int, quick: bool) -> dict[str, float]:
    """The share of a training loop's time in which the step waits for data, with ViT-S/16 on the processor."""
    step = contestant("mae", "vitmae", TINY if quick else S16, batch, bf16=True)
    given = step.inputs[0]
    loader = iter(folder_data(path, batch, workers).train_dataloader())
    next(loader)  # workers have started
    waited, start = 0.0, time.perf_counter()
    steps = 0
    while True:
        before = time.perf_counter()
        got = next(loader, None)
        waited += time.perf_counter() - before
        if got is None:
            break
        images = got.images[..., :32, :32] if quick else got.images
        step.inputs = (given._replace(images=images, keys=got.keys),)
        step()
        steps += 1
    share = waited / (time.perf_counter() - start)
    print(f"\na step of ViT-S/16, batch {batch}, waits {100 * share:.1f} % of its time for {workers} worker(s)")
    return {"share": share, "steps": steps, "workers": workers}


class Memory:
    """A set of CIFAR-10's size as this project stores one: bytes in one tensor."""

    def __init__(self, count: int) -> None:
        drawn = torch.Generator().manual_seed(0)
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=drawn)
        self.images = MemoryImages(images, torch.arange(count) % 10)

    def load(self, path: Any, img_size: tuple[int, int], in_chans: int) -> Splits:
        """See `vitmae.data.splits.Source`."""
        return Splits(train=self.images, val=self.images, class_names=tuple("0123456789"))


def cifar(count: int, batch: int, rounds: int, workers: int) -> dict[str, Any]:
    """Seconds of an epoch through crop, flip and normalise."""
    memory = Memory(count)
    data = ImageData(
        memory, img_size=32, in_chans=3, batch_size=batch, crop="pad", hflip=True, stats={"mean": _MEAN, "std": _STD}
    )
    data.prepare()
    theirs = CIFAR10.__new__(CIFAR10)  # without its files: the same images, in memory as it stores them
    theirs.data = memory.images.images.permute(0, 2, 3, 1).contiguous().numpy()
    theirs.targets = (torch.arange(count) % 10).tolist()
    theirs.target_transform = None
    theirs.transform = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(_MEAN, _STD),
        ]
    )

    def ours() -> int:
        return count_images((normalize(b.images),) for b in data.train_dataloader())

    def by_torchvision() -> int:
        return count_images(DataLoader(theirs, batch, shuffle=True, num_workers=workers, drop_last=True))

    clock_is_wall = workers > 0  # workers' processor time is not this process's
    timings = interleave({"torchvision": by_torchvision, "vitmae": ours}, "torchvision", rounds, wall=clock_is_wall)
    rows = [
        [name, f"{timing.median:.2f}", f"{50 * timing.spread:.0f} %", f"{timing.ratio:.1f}"]
        for name, timing in timings.items()
    ]
    show(
        f"An epoch of {count} images of 32 px, torchvision with {workers} worker(s)",
        ["", "s", "±", "to torchvision"],
        rows,
    )
    return {"count": count, "workers": workers, "timings": timings}


def main(arguments_given: list[str] | None = None) -> int:
    """Compare, print tables, and write results/loader.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--images", type=Path, help="a folder with train/<class>/*.jpg; default: made for the purpose")
    parser.add_argument("--count", type=int, default=320, help="photographs that are made")
    parser.add_argument("--batch", type=int, default=32)
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    keep_freed_memory()  # as a run does, here for all contestants
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    count, batch, rounds = (24, 4, 1) if settings.quick else (settings.count, settings.batch, settings.rounds)
    with tempfile.TemporaryDirectory() as folder:
        path, shrunk = settings.images or Path(folder) / "photographs", Path(folder) / "shrunk"
        if settings.images is None:
            photographs(path, count)
        shrink_folder(path, shrunk, Shrinking(256), settings.threads)
        results = {
            "one_core": one_core(path, shrunk, batch, rounds),
            "waiting": waiting(path, batch, settings.threads, settings.quick),
            "cifar": cifar(
                500 if settings.quick else 50_000,
                100 if settings.quick else 256,
                1 if settings.quick else max(1, rounds // 2),
                2,
            ),
        }
    save("loader", settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
