"""Before a run starts: which precision it computes in, and whether its devices exist."""

import torch

from vitmae.errors import UserError


def resolve_precision(precision: str | int, accelerator: str) -> str | int:
    """The precision that ``auto`` stands for: bf16-mixed if the device computes in bf16, else 32-true.

    Args:
        precision: the setting.
        accelerator: Lightning's name of the device, or ``auto``.
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # emulated bf16 is slower than float32; these two instruction sets compute in bf16
        capabilities = torch.cpu.get_capabilities()
        is_cpu = accelerator in ("auto", "cpu")
        has_bf16 = is_cpu and any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_tile"))
    return "bf16-mixed" if has_bf16 else "32-true"


def check_devices(accelerator: str, devices: int | str | list[int]) -> None:
    """Compare the requested devices with those that exist.

    Raises:
        UserError: fewer GPUs are visible than requested.
    """
    if accelerator not in ("gpu", "cuda") or (accelerator == "gpu" and torch.backends.mps.is_available()):
        return
    visible = torch.cuda.device_count()
    if visible == 0:
        raise UserError(f"trainer.accelerator={accelerator}: no GPU is visible here: use trainer=cpu or trainer=auto")
    needed = max(devices) + 1 if isinstance(devices, list) else int(devices) if str(devices).isdigit() else visible
    if needed > visible:
        raise UserError(f"trainer.devices={devices}: {visible} GPUs are visible here: set fewer, or -1 (all)")
