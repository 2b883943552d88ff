"""One data module for every set: prepare it, then hand over training, validation, test and probe batches.

    source -> splits -> check, take into memory -> set validation aside -> fraction of the rest -> statistics
    requests (samplers.py) -> reader (readers.py) -> Batch of uint8 images

Images are not normalised here: a model owns the mean and deviation it was trained with.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from lightning import LightningDataModule

from vitmae.centre_crop import kept_share
from vitmae.data.augment import augmentation
from vitmae.data.cache import digest, remember
from vitmae.data.loader import Loader, Requests
from vitmae.data.preload import take_in
from vitmae.data.readers import EncodedReader, FixedSizeReader
from vitmae.data.samplers import OrderedRequests, ShuffledRequests
from vitmae.data.settings import (
    image_size,
    plain,
    require,
    require_flag,
    require_number,
    require_whole,
    training_view,
    workers_for,
)
from vitmae.data.splits import EncodedImages, FixedSizeImages, Images, MemoryImages, Source, Splits, Stats
from vitmae.data.stats import given, measure
from vitmae.data.subsets import Part, at_most, divide, fingerprint, refuse_lost_classes
from vitmae.errors import UserError

log = logging.getLogger(__name__)

_SPLIT_SEED = 0  # of all runs: what one run is validated on, no other may have been trained on; of probes too
_MOST_MEASURED = 2048  # images that are decoded or drawn for `stats=auto`; sets in memory are measured whole


class ImageData(LightningDataModule):
    """Batches of images from any source.

    Args:
        source: the set, see the files of this folder.
        path: where it lies, if it lies somewhere: a file, folder or glob, or {train: ..., val: ..., test: ...}.
        img_size: the model's, in pixels: one number, or [height, width].
        in_chans: channels.
        batch_size: images per step and process.
        num_workers: processes that decode; "auto": as many as there are cores for this process, up to 16; none for
            sets in memory, which lie on the device and are cropped there.
        train_fraction: share of each class to train on, after validation images have been set aside.
        val_fraction: share of each class of the training images to set aside for validation, where the set has
            no validation split; the same images for every seed.
        stats: mean and standard deviation of pixels in [0, 1]: "auto", measured on the training images;
            {mean: [...], std: [...]}; null, those that are known of the set, else measured.
        crop: in training, see `View`: none, pad or random_resized.
        crop_scale: smallest and largest share of the image's area in a random_resized crop.
        crop_ratio: smallest and largest width / height of a random_resized crop.
        hflip: in training, mirror every second image at random.
        crop_pct: in evaluation, the share of an image's shorter side that its centre crop keeps; null: 0.875 for
            photographs seen at 96 to 224 pixels, else 1, see `vitmae.centre_crop.kept_share`.
        rand_augment: in training, the magnitude of two random operations, 0 to 10; null: none.
        random_erasing: in training, the probability that an image loses a random box.
        repeats: how many times an image is in its training batch, each time cropped and augmented anew.
        drop_last: leave out the training images that do not fill a batch.
        on_error: what to do with an image that cannot be read: raise, or skip and count it.
        seed: of the order, the crops, the keys of the samples, and the choice of subsets.

    Attributes, after `prepare`:
        num_classes: None without labels.
        class_names: one per class; None without labels.
        num_mask_classes: of the per-pixel classes, with the background; None without masks.
        img_size: (h, w).
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        num_train: images trained on.
        num_val: images validated on.
        num_test: images of the test split.
    """

    num_classes: int | None
    class_names: tuple[str, ...] | None
    num_mask_classes: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_val: int
    num_test: int

    def __init__(
        self,
        source: Source,
        *,
        img_size: int | Sequence[int],
        in_chans: int,
        batch_size: int,
        path: Any = None,
        num_workers: int | Literal["auto"] = "auto",
        train_fraction: float = 1.0,
        val_fraction: float = 0.1,
        stats: Any = None,
        crop: Literal["none", "pad", "random_resized"] = "none",
        crop_scale: Sequence[float] | None = None,
        crop_ratio: Sequence[float] | None = None,
        hflip: bool = False,
        crop_pct: float | None = None,
        rand_augment: float | None = None,
        random_erasing: float = 0.0,
        repeats: int = 1,
        drop_last: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, whole in (("in_chans", in_chans), ("batch_size", batch_size), ("repeats", repeats)):
            require_whole(name, whole, 1)
        require_whole("seed", seed, 0)
        require_whole("num_workers", 0 if num_workers == "auto" else num_workers, 0)
        require_number("train_fraction", train_fraction, 0, 1, above=True)
        require_number("val_fraction", val_fraction, 0, 0.99, above=True)
        require_number("crop_pct", 1 if crop_pct is None else crop_pct, 0, 1, above=True)
        require_number("rand_augment", 0 if rand_augment is None else rand_augment, 0, 10)
        require_number("random_erasing", random_erasing, 0, 1)
        require(batch_size % repeats == 0, "repeats", repeats, f"a divisor of data.batch_size={batch_size}")
        require(on_error in {"raise", "skip"}, "on_error", on_error, "raise or skip")
        require_flag("hflip", hflip)
        require_flag("drop_last", drop_last)
        self.source, self.path, self.seed = source, plain(path), seed
        self.img_size, self.in_chans, self.batch_size = image_size(img_size), in_chans, batch_size
        self.num_workers, self.drop_last, self.skip_unreadable = num_workers, drop_last, on_error == "skip"
        self.train_fraction, self.val_fraction = train_fraction, val_fraction
        self.stats, self.crop_pct = plain(stats), crop_pct
        self.rand_augment, self.random_erasing, self.repeats = rand_augment, random_erasing, repeats
        self.view = training_view(self.img_size, crop, crop_scale, crop_ratio, hflip)
        self._encoded: list[EncodedImages] = []
        self._prepared = False

    # -- once, before the model is built ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Find the images, check them, choose the subsets and measure the statistics; a second call does nothing.

        Raises:
            UserError: with one line on what is wrong with the data or its settings.
        """
        if self._prepared:
            return
        splits = self.source.load(self.path, self.img_size, self.in_chans)
        train = self._take_in(splits.train)
        if splits.val is None:
            self._val, train = divide(train, self.val_fraction, _SPLIT_SEED, "validation")
        else:
            self._val = self._take_in(splits.val)
        self._test = None if splits.test is None else self._take_in(splits.test)
        self.class_names, self.num_mask_classes = splits.class_names, splits.num_mask_classes
        self.num_classes = len(splits.class_names) if splits.class_names else None
        self.mean, self.std = self._statistics(splits, train)
        self._augmentation = augmentation(self.rand_augment, self.random_erasing, self.mean, self.std)
        self._train, _ = divide(train, self.train_fraction, self.seed, "training")
        self.num_train, self.num_val = len(self._train.indices), len(self._val.indices)
        self.num_test = len(self._test.indices) if self._test else 0
        refuse_lost_classes(self._train, splits.class_names)
        if not self.num_val:
            raise UserError("no image is left to validate on: raise data.val_fraction")
        if self.drop_last and self.batch_size > self.num_train:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {self.num_train} training images: lower it"
            )
        if self.skipped:
            log.warning("%d images cannot be read and are skipped", self.skipped)
        self._prepared = True

    def _take_in(self, images: Images) -> Part:
        if isinstance(images, EncodedImages):
            self._encoded.append(images)
        images = take_in(images, self.in_chans, self.skip_unreadable)
        readable = ~images.failed if isinstance(images, EncodedImages) else torch.ones(len(images), dtype=torch.bool)
        return Part(images, readable.nonzero()[:, 0])

    def _statistics(self, splits: Splits, train: Part) -> Stats:
        if isinstance(self.stats, Mapping):
            return given(self.stats, self.in_chans)
        require(self.stats in (None, "auto"), "stats", self.stats, "auto, null or {mean: [...], std: [...]}")
        if self.stats is None and splits.stats and len(splits.stats.mean) == self.in_chans:
            return splits.stats
        if isinstance(train.images, MemoryImages):
            return measure(train.images.read(some) for some in train.indices.split(4096))
        chosen = torch.linspace(0, len(train.indices) - 1, min(len(train.indices), _MOST_MEASURED)).long()
        part = Part(train.images, train.indices[chosen])
        loader = self._loader(part, OrderedRequests(len(chosen), 64), training=False)
        if not isinstance(train.images, EncodedImages):
            return measure(batch.images for batch in loader)
        files = train.images.fingerprint(part.indices.tolist())
        key = digest(files, self.img_size, self.in_chans, self._crop_pct(train.images))
        mean, std = remember("stats", key, lambda: measure(batch.images for batch in loader))
        return Stats(tuple(mean), tuple(std))

    def _crop_pct(self, images: Images) -> float:
        is_cut = isinstance(images, FixedSizeImages) and images.size == self.img_size
        return kept_share(self.crop_pct, self.img_size, is_cut)

    @property
    def val_crop_pct(self) -> float:
        """The share of the shorter side that validation keeps, after `prepare`: the setting, or what null came to."""
        return self._crop_pct(self._val.images)

    @property
    def skipped(self) -> int:
        """Images that turned out to be unreadable so far, in all splits and all workers of this process."""
        return sum(int(images.failed.sum()) for images in self._encoded)

    # -- batches -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Called by the Trainer: the same as `prepare`."""
        self.prepare()

    def train_dataloader(self) -> Loader:
        """Training batches of this rank, in an order that a resumed run takes up where it was left.

        Raises:
            UserError: the batches of all processes together need more images than there are.
        """
        rank, world = self._rank_and_world()
        if self.batch_size * world > self.num_train:
            raise UserError(
                f"data.batch_size={self.batch_size} on {world} processes is more than the "
                f"{self.num_train} training images: lower it"
            )
        requests = ShuffledRequests(
            self.num_train,
            self.batch_size,
            self.seed,
            repeats=self.repeats,
            drop_last=self.drop_last,
            rank=rank,
            world=world,
            position=self._position if self.trainer else None,
        )
        return self._loader(self._train, requests, training=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Called by the Trainer: augment a training batch on the device that it is on."""
        if self._augmentation and self.trainer and self.trainer.training:
            keys = batch.keys.cpu()
            for augment in self._augmentation:
                batch = batch._replace(images=augment(batch.images, keys))
        return batch

    def val_dataloader(self) -> Loader:
        """Validation batches of this rank: over all ranks every image once."""
        return self._ordered(self._val)

    def test_dataloader(self) -> Loader:
        """Test batches of this rank: over all ranks every image once.

        Raises:
            UserError: the set has no test split.
        """
        return self._ordered(self._part("test"))

    def probe_dataloaders(self, limit: int | None = None) -> tuple[Loader, Loader]:
        """Training and validation images for an online probe, see `evaluation_dataloader`."""
        return self.evaluation_dataloader("train", limit), self.evaluation_dataloader("val", limit)

    def evaluation_dataloader(
        self, split: Literal["train", "val", "test"], limit: int | None = None, masks: bool = False
    ) -> Loader:
        """Images as evaluation sees them, nothing random, in a fixed order, the same on every rank.

        Args:
            split: which images; train means those that are trained on.
            limit: at most so many, the classes in their proportions; None: all.
            masks: each batch is a `readers.MaskedBatch`, with the class of every pixel.

        Raises:
            UserError: the set has no such split, or no masks.
        """
        if masks and self.num_mask_classes is None:
            raise UserError(
                "these images have no per-pixel classes: use data=shapes, or data=folder with data.source.masks"
            )
        part = at_most(self._part(split), limit, _SPLIT_SEED, "probe")
        return self._loader(part, OrderedRequests(len(part.indices), self.batch_size), training=False, masks=masks)

    def fingerprint(self, split: Literal["train", "val", "test"], limit: int | None = None) -> str:
        """A key of all that `evaluation_dataloader` without masks depends on: the images, and how they are seen."""
        part = at_most(self._part(split), limit, _SPLIT_SEED, "probe")
        return digest(fingerprint(part), self.img_size, self.in_chans, self._crop_pct(part.images))

    def _part(self, split: str) -> Part:
        part = {"train": self._train, "val": self._val, "test": self._test}[split]
        if part is None:
            raise UserError("this set has no test split: give one, or evaluate on the validation split")
        return part

    def _ordered(self, part: Part) -> Loader:
        rank, world = self._rank_and_world()
        requests = OrderedRequests(len(part.indices), self.batch_size, rank=rank, world=world)
        return self._loader(part, requests, training=False)

    def _loader(self, part: Part, requests: Requests, training: bool, masks: bool = False) -> Loader:
        view = replace(self.view, crop_pct=self._crop_pct(part.images))
        view = view if training else view.for_evaluation()
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if isinstance(part.images, EncodedImages):
            workers = workers_for(self.num_workers, self.trainer.num_devices if self.trainer else 1)
            workers = min(workers, max(len(requests) - 1, 0))  # one batch is here sooner than a worker
            encoded = EncodedReader(
                part.images,
                part.indices,
                view,
                self.in_chans,
                self.seed,
                skip_unreadable=self.skip_unreadable,
                masks=masks,
            )
            return Loader(encoded, requests, workers, pin_memory=device.type == "cuda")
        assert isinstance(part.images, FixedSizeImages)
        workers = 0 if self.num_workers == "auto" else self.num_workers
        # Without workers a set in memory moves to the device as a whole, and is cropped and flipped there.
        images = part.images if workers else part.images.to(device)
        return Loader(
            FixedSizeReader(images, part.indices, view, self.seed, masks=masks),
            requests,
            workers,
            pin_memory=device.type == "cuda" and workers > 0,
        )

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _position(self) -> tuple[int, int]:
        """The epoch and the batches already done in it, by the Trainer's count, which a checkpoint restores.

        Its epoch number would not do: a checkpoint written at the end of an epoch still has the old one.
        """
        assert self.trainer is not None
        done = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed
        return divmod(done, int(self.trainer.num_training_batches))
