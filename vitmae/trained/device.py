"""Where a trained model runs."""

import torch

from vitmae.errors import UserError, first_line


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that a setting means; None is the GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a build without CUDA asserts
        raise UserError(f"device={device}: {first_line(error)}; leave it out, or take cpu") from error
    return found
