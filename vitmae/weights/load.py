"""Load weights into a model, and say what came of it.

    text -> read (names translated) -> fit (resampled where sizes differ) -> enough of the encoder? -> write

Nothing is written before all of it has been decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

import torch
from torch import nn

from vitmae.errors import UserError
from vitmae.weights.matching import Fate, Fit, fit
from vitmae.weights.read import read_weights
from vitmae.weights.source import Source, is_commercial

MIN_MATCH = 0.95
_SHOWN = 3  # names of a list, the rest is counted


@dataclass(frozen=True)
class LoadReport:
    """What became of a model's tensors. `str(report)` is the text to print.

    Attributes:
        source: where they came from; its `license` and `notes` are part of the text.
        fits: one per tensor of the model.
        unused: names there of what has no place in the model.
    """

    source: Source
    fits: Sequence[Fit]
    unused: Sequence[str]

    def share(self, part: str, *fates: Fate) -> float:
        """The share of a part's values that had one of these fates, in [0, 1]; 0 for a part that does not exist.

        Args:
            part: encoder, decoder or head.
            fates: see `Fit`; all but ``new`` where none is given.
        """
        fates = fates or tuple(fate for fate in get_args(Fate) if fate != "new")
        fits = [fit for fit in self.fits if part_of(fit.name) == part]
        return sum(fit.numel for fit in fits if fit.fate in fates) / max(1, sum(fit.numel for fit in fits))

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint should remember of it: `initial_weights` and `license`, as plain values."""
        return {"initial_weights": self.source.name, "license": self.source.license}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        source = self.source
        lines = [f"weights: {source.name} ({source.format})"]
        for part in ("encoder", "decoder", "head"):
            numel = sum(fit.numel for fit in self.fits if part_of(fit.name) == part)
            shares = {fate: self.share(part, fate) for fate in get_args(Fate)}
            said = ", ".join(f"{share:.1%} {fate}" for fate, share in shares.items() if share)
            lines += [f"  {part:10} {numel / 1e6:.2f} M values: {said}"] if numel else []
        for fate in ("resampled", "recomputed", "new"):
            fits = sorted((fit for fit in self.fits if fit.fate == fate), key=lambda fit: fit.note)
            for note, group in groupby(fits, key=lambda fit: fit.note):
                lines.append(f"  {fate:10} {_some([fit.name for fit in group])}" + (f" ({note})" if note else ""))
        lines += [f"  {'unused':10} {_some(self.unused)}"] if self.unused else []
        lines += [f"  {'note':10} {note}" for note in source.notes]
        if is_commercial(source.license) is False:
            lines.append(f"  {'warning':10} the licence {source.license} does not allow commercial use")
        return lines


def load_weights(
    model: nn.Module, source: str | Source, *, min_match: float = MIN_MATCH, trust: Sequence[str] = ()
) -> LoadReport:
    """Load weights from elsewhere into an objective or a backbone, in place.

    An objective takes encoder, decoder and head as far as they are there; a backbone takes the encoder alone, whatever
    else is there. The mean and deviation of the data are never loaded.

    Args:
        model: a `Backbone`, or an objective that has one.
        source: a path, a timm name or a hub repository, see `read_weights`; or what was read already.
        min_match: the share of the encoder's values that must come from the source.
        trust: see `read_weights`.

    Raises:
        UserError: the source cannot be read, or less of the encoder matches.
    """
    weights = source if isinstance(source, Source) else read_weights(source, trust)
    fits = fit(weights, model)
    used = {fit.name for fit in fits if fit.fate != "new"}
    unused = [theirs for ours, theirs in weights.names.items() if ours not in used]
    report = LoadReport(weights, fits, [*unused, *weights.unknown])
    match = report.share("encoder")
    if match < min_match:
        raise UserError(
            f"{weights.name}: {match:.2%} of the encoder match, and {min_match:.0%} are wanted "
            f"({_reason(report)}): choose the backbone that it was made for, or set weights_min_match=0"
        )
    _write(model, fits)
    return report


def part_of(name: str) -> str:
    """encoder, decoder or head."""
    return {"backbone": "encoder", "decoder": "decoder"}.get(name.partition(".")[0], "head")


def _write(model: nn.Module, fits: Sequence[Fit]) -> None:
    state = model.state_dict()
    prefix = "" if any(key.startswith("backbone.") for key in state) else "backbone."
    with torch.no_grad():
        for fit in fits:
            if fit.value is not None:
                state[fit.name.removeprefix(prefix)].copy_(fit.value)


def _reason(report: LoadReport) -> str:
    """Why the largest part of the encoder does not match, by the largest tensor that does not."""
    missing = [fit for fit in report.fits if fit.fate == "new" and part_of(fit.name) == "encoder"]
    largest = max(missing, key=lambda fit: fit.numel)
    return f"{largest.name} is {largest.note}"


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
