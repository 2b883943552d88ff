"""Random numbers as a function of a key, not as a state.

A key is a 64-bit integer folded from what identifies a draw: ``fold(seed, epoch, index, "mask")``. The same key
gives the same numbers on every device, in every worker, on every rank and after every resume. So a run resumes exactly
without a saved state, and the number of workers cannot change it.

The generator is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
used as a counter: draw ``i`` of key ``k`` is ``mix(k + (i + 1) * GOLDEN)``. It needs integer arithmetic modulo 2^64
only, which int64 tensors do exactly on every device.
"""

from zlib import crc32

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 that has the same 64 bits as ``value``: torch has no arithmetic on uint64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser on an int64 tensor of any shape; a mask after each shift makes it logical."""
    bits = (bits ^ ((bits >> 30) & ((1 << 34) - 1))) * _signed(_MIX[0])
    bits = (bits ^ ((bits >> 27) & ((1 << 37) - 1))) * _signed(_MIX[1])
    return bits ^ ((bits >> 31) & ((1 << 33) - 1))


def _mix_int(bits: int) -> int:
    """`_mix` for one Python integer."""
    bits = ((bits ^ (bits >> 30)) * _MIX[0]) & _MASK
    bits = ((bits ^ (bits >> 27)) * _MIX[1]) & _MASK
    return bits ^ (bits >> 31)


def _as_int(part: int | str) -> int:
    return crc32(part.encode()) | (1 << 40) if isinstance(part, str) else int(part)


def fold(*parts: int | str) -> int:
    """Fold what identifies a draw into one key (an int64); the order of the parts matters."""
    key = 0
    for part in parts:
        key = _mix_int((key * 3 + _as_int(part) + _GOLDEN) & _MASK)
    return _signed(key)


def fold_each(keys: Tensor, *parts: int | str) -> Tensor:
    """Fold ``parts`` into each of many keys: int64 of any shape -> int64 of the same shape.

    The same as more parts of ``fold``: ``fold_each(tensor(fold(a)), b) == fold(a, b)``.
    """
    for part in parts:
        keys = _mix(keys * 3 + _signed(_as_int(part) + _GOLDEN))
    return keys


def fold_indices(key: int, indices: Tensor) -> Tensor:
    """One key per index: int64 of any shape -> the same shape; each index is one more part of ``fold``."""
    return _mix(indices + _signed(key * 3 + _GOLDEN))


def uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1): keys (B,) int64 -> (B, count) float32, 24 random bits each."""
    counter = torch.arange(1, count + 1, device=keys.device) * _signed(_GOLDEN)
    bits = _mix(keys[:, None] + counter)  # (B, count)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def generator(*parts: int | str) -> torch.Generator:
    """A CPU ``torch.Generator`` seeded by a key, for library functions that take one."""
    return torch.Generator().manual_seed(fold(*parts) & _MASK)


def seed_torch(key: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of one device, for library functions that take no generator.

    The numbers are the same as after ``torch.manual_seed``. That function also seeds all other kinds of devices; for
    a kind that is not in use, each call stores its call stack for later, which takes milliseconds and is never freed.
    """
    torch.default_generator.manual_seed(key)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(key)


def permutation(count: int, *parts: int | str) -> Tensor:
    """A random order of ``range(count)``: (count,) int64, a function of the key alone."""
    return torch.randperm(count, generator=generator(*parts))
