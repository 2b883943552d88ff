"""Before a run starts: which precision it computes in, and whether its devices and its strategy can be used."""

from collections.abc import Mapping
from typing import Any

import torch

from vitmae.errors import UserError

_COPYING = ("spawn", "fork", "notebook")
"""How Lightning's `ddp_spawn`, `ddp_fork` and `ddp_notebook` start processes."""


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


def check_strategy(strategy: str | Mapping[str, Any]) -> None:
    """Refuse strategies whose processes are copies of this one: they train, but cannot return what they trained.

    Args:
        strategy: Lightning's name, or the settings of a strategy's class.

    Raises:
        UserError: the processes would be spawned or forked.
    """
    if isinstance(strategy, Mapping):
        name, method = str(strategy.get("_target_")), str(strategy.get("start_method", "popen"))
    else:
        name = str(strategy)
        method = next((method for method in _COPYING if name.startswith(f"ddp_{method}")), "popen")
    if method != "popen":
        raise UserError(f"trainer.strategy={name}: starts processes by {method}, which cannot return a run: use ddp")
