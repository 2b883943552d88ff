"""The device of a trained model."""

import torch

from vitmae.errors import UserError, first_line


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that a setting names; None: the GPU, or the CPU on a machine without one.

    Raises:
        UserError: this machine has no such device.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch without CUDA raises AssertionError
        raise UserError(f"device={device}: {first_line(error)}; leave it out, or set device=cpu") from error
    if found.type == "meta":
        raise UserError("device=meta holds no numbers: leave it out, or set device=cpu")
    return found
