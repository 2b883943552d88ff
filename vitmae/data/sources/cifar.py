"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour images of 32 x 32 pixels, 10 or 100 classes.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images" (2009). torchvision downloads and reads
the original files. They are pickles, so they are opened only if they have the published checksums.
"""

import logging
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from vitmae.data.splits import MemoryImages, Paths, Splits, Stats
from vitmae.errors import UserError
from vitmae.files import user_path
from vitmae.limits import check_arguments

log = logging.getLogger(__name__)

_STATS = {  # of the 50,000 training images
    10: Stats((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    100: Stats((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class CIFAR:
    """CIFAR by torchvision.

    Args:
        num_classes: 10 or 100.
        download: whether to download it if it is not in `data.path`; a checkpoint never decides this.
    """

    @check_arguments("data.source")
    def __init__(self, num_classes: Literal[10, 100], download: bool = True) -> None:
        self.num_classes, self.download = num_classes, download

    def load(self, path: Paths, img_size: tuple[int, int], in_chans: int) -> Splits:
        """Load it, downloading it first if it is not in ``path`` and may be; there is no validation split.

        Raises:
            UserError: it is not in ``path`` and cannot be downloaded, or ``in_chans`` is not 3.
        """
        if in_chans != 3:
            raise UserError(f"CIFAR has 3 channels, not {in_chans}: set data.in_chans=3")
        if not isinstance(path, str):
            raise UserError(f"data.path={path} must be the folder of CIFAR-{self.num_classes}, or a new one")
        from torchvision import datasets

        dataset: Any = datasets.CIFAR10 if self.num_classes == 10 else datasets.CIFAR100
        folder = user_path(path)
        if not (folder / dataset.base_folder).is_dir():
            if not self.download:
                name = f"CIFAR-{self.num_classes}"
                raise UserError(f"data.path={path} does not hold {name}: set data.path, or data.source.download=true")
            self._download(dataset, folder)
        try:
            parts = [dataset(folder, train=train) for train in (True, False)]
        except RuntimeError:
            raise UserError(
                f"{folder / dataset.base_folder} is not the CIFAR-{self.num_classes} that was "
                "published: remove it, and it is downloaded again"
            ) from None
        train, test = (
            MemoryImages(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
            for part in parts
        )
        return Splits(train=train, test=test, class_names=tuple(parts[0].classes), stats=_STATS[self.num_classes])

    def _download(self, dataset: Any, folder: Path) -> None:
        """Download into a temporary folder and move the result, so that several processes can do it at once."""
        name = f"CIFAR-{self.num_classes}"
        log.info("downloading %s to %s", name, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as beside:
                dataset(beside, download=True)
                found = folder / dataset.base_folder
                with suppress(OSError):  # another process was faster
                    (Path(beside) / dataset.base_folder).rename(found)
        except (OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{name} is not in {folder} and cannot be downloaded ({reason}): put its folder "
                f"{dataset.base_folder} there, or use data=parquet data.path=..."
            ) from error
