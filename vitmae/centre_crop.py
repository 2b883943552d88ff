"""How much of an image the centre crop of an evaluation keeps: one rule for data, exports and trained models."""


def kept_share(crop_pct: float | None, img_size: tuple[int, int], is_cut: bool = False) -> float:
    """The share of an image's shorter side that is kept, in (0, 1].

    As in the evaluation of https://arxiv.org/abs/2111.06377's code, photographs seen at 96 to 224 pixels keep 7/8.

    Args:
        crop_pct: the setting; None leaves it to the rule.
        img_size: (h, w) in which images are seen, in pixels.
        is_cut: all images of the set have this size already: nothing is cut off.
    """
    if crop_pct is not None:
        return crop_pct
    return 1.0 if is_cut or not 96 <= min(img_size) <= 224 else 0.875
