"""What the probes of `vitmae.evaluation.probes` share."""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, MinLen
from torch import Tensor

from vitmae.errors import UserError

Count = Annotated[int, Ge(1)]
Counts = Annotated[Sequence[Count], MinLen(1)]
Rates = Annotated[Sequence[Annotated[float, Gt(0)]], MinLen(1)]


class Probe:
    """What all probes of labelled images have in common."""

    def check(self, labels: Tensor, width: int) -> None:
        """Refuse, before features are computed, training images that are too few, or an encoder that does not fit.

        Args:
            labels: (M,) int64, of the training images.
            width: of the encoder.

        Raises:
            UserError: says how many images the probe needs, or what does not fit.
        """


def require_room_after_warmup(probe: str, epochs: int, warmup_epochs: int) -> None:
    """Refuse a warm-up that is not shorter than the training.

    Raises:
        UserError: names both settings.
    """
    if warmup_epochs >= epochs:
        raise UserError(f"{probe}.warmup_epochs={warmup_epochs}: must be < {probe}.epochs={epochs}")
