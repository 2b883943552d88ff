"""The share of an image that the centre crop keeps: the same rule for data, exports and trained models."""


def kept_share(crop_pct: float | None, img_size: tuple[int, int], is_cut: bool = False) -> float:
    """The share of an image's shorter side that is kept, in (0, 1].

    Photographs seen at 96 to 224 pixels keep 7/8, as in the published evaluation code of https://arxiv.org/abs/2111.06377.

    Args:
        crop_pct: the setting; None: the rule above.
        img_size: (h, w) of the model's input, in pixels.
        is_cut: whether all images of the set have this size already; then nothing is cut off.
    """
    if crop_pct is not None:
        return crop_pct
    return 1.0 if is_cut or not 96 <= min(img_size) <= 224 else 0.875
