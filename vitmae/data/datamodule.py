"""One data module for every set: prepare it, then hand over training, validation, test and probe batches.

    source -> splits -> parts (parts.py): checked, in memory if small, validation set aside -> statistics (stats.py)
    requests (samplers.py) -> reader (readers.py) -> loader (part_loader.py) -> Batch of uint8 images

Images are not normalised here: a model owns the mean and deviation it was trained with.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from lightning import LightningDataModule
from torch import Tensor

from vitmae.data.arguments import image_size, plain, training_view
from vitmae.data.augment import augmentation
from vitmae.data.cache import digest
from vitmae.data.loader import Loader, Requests
from vitmae.data.part_loader import PartLoaders
from vitmae.data.parts import SPLIT_SEED, make_parts
from vitmae.data.samplers import OrderedRequests, ShuffledRequests
from vitmae.data.splits import Paths, Source
from vitmae.data.subsets import Part, at_most, fingerprint
from vitmae.errors import UserError
from vitmae.limits import Seed, check_arguments

log = logging.getLogger(__name__)

Count = Annotated[int, Ge(1)]
Side = Annotated[int, Ge(1), Le(2**16)]
Share = Annotated[float, Gt(0), Le(1)]
Ratio = Annotated[float, Gt(0)]


class ImageData(LightningDataModule):
    """Batches of images from any source.

    Args:
        source: the set, see the files of this folder.
        path: of the set on disk: a file, folder or glob, or {train: ..., val: ..., test: ...}; null for sets that
            are drawn or installed.
        img_size: the model's, in pixels: one number, or [height, width].
        in_chans: channels.
        batch_size: images per step and process.
        num_workers: processes that decode; "auto": one per core of this process, up to 16, and none for sets in
            memory, which are cropped on the device.
        train_fraction: share of each class to train on, after validation images have been set aside.
        val_fraction: share of each class of the training images to set aside for validation, where the set has
            no validation split; the same images for every seed.
        stats: mean and standard deviation of pixels in [0, 1]: "auto", measured on the training images;
            {mean: [...], std: [...]}; null, those that the source knows, else measured.
        crop: in training, see `View`: none, pad, random_resized or random_resized_clipped.
        crop_scale: smallest and largest share of the image's area in a random_resized crop.
        crop_ratio: smallest and largest width / height of a random_resized crop.
        hflip: in training, mirror every second image at random.
        crop_pct: in evaluation, the share of an image's shorter side that its centre crop keeps; null: 0.875 for
            photographs seen at 96 to 224 pixels, else 1, see `vitmae.centre_crop.kept_share`.
        rand_augment: in training, the magnitude of two random operations, 0 to 10; null: none.
        random_erasing: in training, the probability that an image loses a random box.
        repeats: how many times an image is in its training batch, each time with another crop and augmentation.
        drop_last: leave out the training images that do not fill a batch.
        on_error: what to do with an image that cannot be read: raise, or skip and count it.
        seed: of the order, the crops, the keys of the samples, and the choice of subsets.

    Attributes, after `prepare`:
        num_classes: None without labels.
        class_names: one per class; None without labels.
        num_mask_classes: of the per-pixel classes, with the background; None without masks.
        img_size: (h, w).
        mean: per channel, of pixels in [0, 1].
        std: per channel, of the same pixels.
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

    @check_arguments("data")
    def __init__(
        self,
        source: Source,
        *,
        img_size: Side | Sequence[Side],
        in_chans: Annotated[int, Ge(1), Le(10_000)],
        batch_size: Count,
        path: Paths = None,
        num_workers: Annotated[int, Ge(0), Le(1024)] | Literal["auto"] = "auto",
        train_fraction: Share = 1.0,
        val_fraction: Annotated[float, Gt(0), Le(0.99)] = 0.1,
        stats: Literal["auto"] | Mapping[str, Sequence[float]] | None = None,
        crop: Literal["none", "pad", "random_resized", "random_resized_clipped"] = "none",
        crop_scale: tuple[Share, Share] | None = None,
        crop_ratio: tuple[Ratio, Ratio] | None = None,
        hflip: bool = False,
        crop_pct: Share | None = None,
        rand_augment: Annotated[float, Ge(0), Le(10)] | None = None,
        random_erasing: Annotated[float, Ge(0), Le(1)] = 0.0,
        repeats: Count = 1,
        drop_last: bool = True,
        on_error: Literal["raise", "skip"] = "raise",
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        if batch_size % repeats:
            raise UserError(f"data.repeats={repeats}: must be a divisor of data.batch_size={batch_size}")
        self.source, self.path, self.seed = source, plain(path), seed
        self.img_size, self.in_chans, self.batch_size = image_size(img_size), in_chans, batch_size
        self.num_workers, self.drop_last, self.skip_unreadable = num_workers, drop_last, on_error == "skip"
        self.train_fraction, self.val_fraction = train_fraction, val_fraction
        self.stats, self.crop_pct = plain(stats), crop_pct
        self.rand_augment, self.random_erasing, self.repeats = rand_augment, random_erasing, repeats
        self.view = training_view(self.img_size, crop, crop_scale, crop_ratio, hflip)
        self.loaders = PartLoaders(self.view, crop_pct, in_chans, seed, num_workers, self.skip_unreadable)
        self.is_prepared = False
        self._start = (0, 0, 0)  # the epoch, batch and image at which the present batch size begins

    # -- once, before the model is built ---------------------------------------------------------------------------

    def prepare(self) -> None:
        """Find the images, check them, choose the subsets and measure the statistics; a second call does nothing.

        Raises:
            UserError: with one line on what is wrong with the data or its settings.
        """
        if self.is_prepared:
            return
        splits = self.source.load(self.path, self.img_size, self.in_chans)
        self.has_val_split = splits.val is not None
        self.parts = make_parts(
            splits,
            self.loaders,
            stats=self.stats,
            val_fraction=self.val_fraction,
            train_fraction=self.train_fraction,
        )
        self.class_names, self.num_mask_classes = splits.class_names, splits.num_mask_classes
        self.num_classes = len(splits.class_names) if splits.class_names else None
        self.mean, self.std = self.parts.stats
        self.num_train, self.num_val = len(self.parts.train.indices), len(self.parts.val.indices)
        self.num_test = len(self.parts.test.indices) if self.parts.test else 0
        if self.drop_last and self.batch_size > self.num_train:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {self.num_train} training images: lower it"
            )
        self.augmentation = augmentation(self.rand_augment, self.random_erasing, self.mean, self.std)
        if self.parts.num_skipped:
            log.warning("%d images cannot be read and are skipped", self.parts.num_skipped)
        self.is_prepared = True

    def took_effect(self) -> dict[str, Any]:
        """Settings that are stored under another name, see `vitmae.training.accounting`."""
        view, augments = self.view, {type(augment).__name__: augment for augment in self.augmentation}
        seen = {"crop": view.crop, "crop_scale": view.scale, "crop_ratio": view.ratio, "hflip": view.hflip}
        return seen | {
            "rand_augment": getattr(augments.get("RandAugment"), "magnitude", None),
            "random_erasing": getattr(augments.get("RandomErasing"), "probability", 0.0),
            "on_error": "skip" if self.skip_unreadable else "raise",
        }

    def without_effect(self) -> dict[str, str]:
        """Settings that have no effect with this set, and why."""
        reasons = {}
        if self.has_val_split:
            reasons["val_fraction"] = "the set has validation images of its own: leave it out"
        if self.view.crop != "random_resized":
            reason = f"data.crop={self.view.crop}, and only random_resized has it: leave it out"
            reasons |= {"crop_scale": reason, "crop_ratio": reason}
        if not self.parts.encoded:
            reasons["on_error"] = "the set has no files that could be unreadable: leave it out"
        return reasons

    def require_labels(self) -> None:
        """Check that every image has a label.

        Raises:
            UserError: some have none, as rows of a table may.
        """
        for part in filter(None, (self.parts.train, self.parts.val, self.parts.test)):
            missing = int((part.labels < 0).sum())
            if missing:
                raise UserError(
                    f"{missing} of {len(part.labels)} images have no label, and this objective learns from labels: "
                    "label them, remove them, or use model=mae"
                )

    @property
    def val_crop_pct(self) -> float:
        """The share of the shorter side that validation keeps: the setting, or the value that null stands for."""
        return self.loaders.crop_pct_of(self.parts.val.images)

    # -- batches -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Called by the Trainer: the same as `prepare`."""
        self.prepare()

    def train_dataloader(self) -> Loader:
        """Training batches of this rank; a resumed run continues with the batch after the last one trained on.

        Raises:
            UserError: the batches of all processes together need more images than there are.
        """
        rank, world = self._rank_and_world()
        self.check_batch(world)
        self.requests = ShuffledRequests(
            self.num_train,
            self.batch_size,
            self.seed,
            repeats=self.repeats,
            drop_last=self.drop_last,
            rank=rank,
            world=world,
            position=self._position if self.trainer else None,
        )
        return self._loader(self.parts.train, self.requests, training=True)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Called by the Trainer: augment a training batch on the device that it is on."""
        if self.augmentation and self.trainer and self.trainer.training:
            keys = batch.keys.cpu()
            for augment in self.augmentation:
                batch = batch._replace(images=augment(batch.images, keys))
        return batch

    def check_batch(self, world: int) -> None:
        """Refuse a batch of all processes together that needs more images than there are.

        Args:
            world: the number of processes.

        Raises:
            UserError: see `train_dataloader`.
        """
        if self.batch_size * world > self.num_train:
            raise UserError(
                f"data.batch_size={self.batch_size} on {world} processes is more than the "
                f"{self.num_train} training images: lower it"
            )

    def val_dataloader(self) -> Loader:
        """Validation batches of this rank: over all ranks every image once."""
        rank, world = self._rank_and_world()
        requests = OrderedRequests(len(self.parts.val.indices), self.batch_size, rank=rank, world=world)
        return self._loader(self.parts.val, requests)

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
        part = self._part(split, limit)
        return self._loader(part, OrderedRequests(len(part.indices), self.batch_size), masks=masks)

    def labels(self, split: Literal["train", "val", "test"], limit: int | None = None) -> Tensor:
        """The labels of the images of an `evaluation_dataloader`: (M,) int64."""
        return self._part(split, limit).labels

    def fingerprint(self, split: Literal["train", "val", "test"], limit: int | None = None) -> str:
        """A hash of all that `evaluation_dataloader` without masks depends on: the images, their size and crop."""
        part = self._part(split, limit)
        return digest(fingerprint(part), self.img_size, self.in_chans, self.loaders.crop_pct_of(part.images))

    def _part(self, split: Literal["train", "val", "test"], limit: int | None = None) -> Part:
        """The images of a split, at most ``limit`` of them."""
        part = {"train": self.parts.train, "val": self.parts.val, "test": self.parts.test}[split]
        if part is None:
            raise UserError("this set has no test split: give one, or evaluate on the validation split")
        return at_most(part, limit, SPLIT_SEED, "probe")

    def _loader(self, part: Part, requests: Requests, training: bool = False, masks: bool = False) -> Loader:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        processes = self.trainer.num_devices if self.trainer else 1
        return self.loaders.load(part, requests, training=training, masks=masks, device=device, processes=processes)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def state_dict(self) -> dict[str, int]:
        """Called by the Trainer when it saves: the epoch, and how many of its images were trained on."""
        assert self.trainer is not None
        done: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        epoch, images = self._place(done.processed)
        return {"epoch": epoch, "images": images}

    def start_at(self, epoch: int, images: int) -> int:
        """Continue an epoch after its first ``images`` images; return the number of the next batch.

        A batch size that has not changed gives the number that it had. The last of a resumed epoch's batches is the
        last of a whole epoch's, so the Trainer ends the epoch as ever.
        """
        assert self.trainer is not None
        batches = int(self.trainer.num_training_batches)
        left = min(len(self.requests.sizes_after(images)), max(1, batches - images // self.requests.block))
        self._start = (epoch, batches - left, images)
        return batches - left

    def _position(self) -> tuple[int, int]:
        """The epoch and its images already done, by the Trainer's count, which a checkpoint restores.

        The Trainer's epoch number would be wrong: a checkpoint written at the end of an epoch still has the old one.
        """
        assert self.trainer is not None
        progress, length = self.trainer.fit_loop.epoch_loop.batch_progress, int(self.trainer.num_training_batches)
        if progress.current.completed == length:  # resumed after an epoch's last batch, at what follows it
            return progress.total.completed // length - 1, self.requests.distinct
        return self._place(progress.total.completed)

    def _place(self, batches: int) -> tuple[int, int]:
        """The epoch after a number of batches, and the distinct images of that epoch that they hold."""
        assert self.trainer is not None
        epoch, batch = divmod(batches, int(self.trainer.num_training_batches))
        first_epoch, first_batch, first_image = self._start
        block = self.requests.block
        if epoch == first_epoch:
            return epoch, first_image + (batch - first_batch) * block
        return epoch, batch * block
