"""Load weights into a model, and report what was loaded.

    text -> read (names translated) -> match (resampled where sizes differ) -> enough of the encoder? -> copy

Nothing is copied before everything is decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, get_args

import torch
from torch import nn

from vitmae.errors import UserError
from vitmae.weights.matching import Fate, Match, match_weights
from vitmae.weights.read import read_weights
from vitmae.weights.translation import Weights, is_commercial

MIN_MATCH = 0.95
_SHOWN = 3  # names of a list; the others are counted


@dataclass(frozen=True)
class LoadReport:
    """What became of a model's tensors. `str(report)` is the text to print.

    Attributes:
        weights: what was read; its `license` and `notes` are part of the text.
        matches: one per tensor of the model.
        unused: names, as in the file, of tensors that have no place in the model.
    """

    weights: Weights
    matches: Sequence[Match]
    unused: Sequence[str]

    def share(self, part: str, *fates: Fate) -> float:
        """The share of a part's values that had one of these fates, in [0, 1]; 0 for a part that does not exist.

        Args:
            part: encoder, decoder or head.
            fates: see `Match`; none given: all but ``new``.
        """
        fates = fates or tuple(fate for fate in get_args(Fate) if fate != "new")
        matches = [match for match in self.matches if part_of(match.name) == part]
        return sum(match.numel for match in matches if match.fate in fates) / max(1, _numel(matches))

    @property
    def origin(self) -> dict[str, Any]:
        """What a checkpoint saves about the weights: `initial_weights` and `license`, as plain values."""
        return {"initial_weights": self.weights.name, "license": self.weights.license}

    def __str__(self) -> str:
        weights = self.weights
        lines = [f"weights: {weights.name} ({weights.format})"]
        for part in ("encoder", "decoder", "head"):
            numel = _numel([match for match in self.matches if part_of(match.name) == part])
            shares = {fate: self.share(part, fate) for fate in get_args(Fate)}
            said = ", ".join(f"{share:.1%} {fate}" for fate, share in shares.items() if share)
            lines += [f"  {part:10} {numel / 1e6:.2f} M values: {said}"] if numel else []
        for fate in ("resampled", "recomputed", "new"):
            matches = sorted((match for match in self.matches if match.fate == fate), key=lambda match: match.note)
            for note, group in groupby(matches, key=lambda match: match.note):
                lines.append(f"  {fate:10} {_some([match.name for match in group])}" + (f" ({note})" if note else ""))
        lines += [f"  {'unused':10} {_some(self.unused)}"] if self.unused else []
        lines += [f"  {'note':10} {note}" for note in weights.notes]
        if is_commercial(weights.license) is False:
            lines.append(f"  {'warning':10} the licence {weights.license} does not allow commercial use")
        return "\n".join(lines)


def load_weights(
    model: nn.Module, source: str | Weights, *, min_match: float = MIN_MATCH, trust: Sequence[str] = ()
) -> LoadReport:
    """Load weights into an objective or a backbone, in place.

    An objective takes the encoder, decoder and head that the source has; a backbone takes the encoder alone. The mean
    and deviation of the data are never loaded.

    Args:
        model: a `Backbone`, or an objective that has one.
        source: a path, a timm name or a hub repository, see `read_weights`; or what it returned.
        min_match: the share of the encoder's values that must come from the source.
        trust: see `read_weights`.

    Raises:
        UserError: the source cannot be read, or a smaller share of the encoder matches.
    """
    weights = source if isinstance(source, Weights) else read_weights(source, trust)
    matches = match_weights(weights, model)
    used = {match.name for match in matches if match.fate != "new"}
    unused = [theirs for ours, theirs in weights.names.items() if ours not in used]
    report = LoadReport(weights, matches, [*unused, *weights.unknown])
    share = report.share("encoder")
    if share < min_match:
        raise UserError(
            f"{weights.name}: {share:.2%} of the encoder match, must be ≥ {min_match:.0%} "
            f"({_reason(report)}): choose the backbone that the weights were made for, or set weights_min_match=0"
        )
    _copy(model, matches)
    return report


def part_of(name: str) -> str:
    """encoder, decoder or head."""
    return {"backbone": "encoder", "decoder": "decoder"}.get(name.partition(".")[0], "head")


def _numel(matches: Sequence[Match]) -> int:
    return sum(match.numel for match in matches)


def _copy(model: nn.Module, matches: Sequence[Match]) -> None:
    state = model.state_dict()
    prefix = "" if any(key.startswith("backbone.") for key in state) else "backbone."
    with torch.no_grad():
        for match in matches:
            if match.value is not None:
                state[match.name.removeprefix(prefix)].copy_(match.value)


def _reason(report: LoadReport) -> str:
    """Why the largest tensor of the encoder without a match has none."""
    missing = [match for match in report.matches if match.fate == "new" and part_of(match.name) == "encoder"]
    largest = max(missing, key=lambda match: match.numel)
    return f"{largest.name} is {largest.note}"


def _some(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
