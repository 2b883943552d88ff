"""Forward + backward + AdamW: this project against what else one could pick, side by side.

    python -m benchmarks.step                              all cases
    python -m benchmarks.step --case mae_b16 --batch 4    one of them, smaller

Every contestant has the same sizes, precision, batch, allocator setting and fused AdamW, and is timed eager and
compiled, each in turn, round by round. In the case `defaults` each is used as its documentation shows. Memory is
measured of each contestant alone, in a process of its own.
"""

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.contestants import B16, CIFAR, PEERS, S16, TINY, Size, contestant, objective
from benchmarks.measure import (
    Timing,
    arguments,
    interleave,
    machine,
    matmul_rate,
    peak_memory,
    rate,
    resident_memory,
    save,
    show,
)
from vitmae.models.flops import training_flops


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        title: in words.
        kind: mae, supervised or masked_patch.
        size: of all contestants.
        batch: images.
        bf16: or float32.
        modes: eager, compiled.
        rivals: peers, or another objective of this project.
    """

    title: str
    kind: str
    size: Size
    batch: int
    bf16: bool = True
    modes: tuple[str, ...] = ("eager", "compiled")
    rivals: tuple[str, ...] = ()


_MAE, _ViT = tuple(PEERS["mae"]), tuple(PEERS["supervised"])
CASES = {
    "mae_b16": Case("MAE, ViT-B/16, 224 px, bf16", "mae", B16, 16, rivals=_MAE),
    "mae_b16_fp32": Case("MAE, ViT-B/16, 224 px, float32", "mae", B16, 16, False, ("eager",), _MAE),
    "mae_cifar": Case("MAE, 192x12 + 192x4, 32 px, patch 4, bf16", "mae", CIFAR, 256, rivals=_MAE),
    "mae_cifar_fp32": Case("MAE, 192x12 + 192x4, 32 px, patch 4, float32", "mae", CIFAR, 256, False, ("eager",), _MAE),
    "vit_s16": Case("Supervised, ViT-S/16, 224 px, bf16", "supervised", S16, 16, rivals=_ViT),
    "vit_s16_fp32": Case("Supervised, ViT-S/16, 224 px, float32", "supervised", S16, 16, False, ("eager",), _ViT),
    "masked_patch": Case("Masked patch prediction against supervised, ViT-S/16, 224 px, bf16", "masked_patch", S16, 16,
                         modes=("eager",), rivals=("supervised",)),
    "defaults": Case("MAE, ViT-B/16, 224 px, each with its own defaults", "mae", B16, 16, modes=("eager",),
                     rivals=_MAE),
}  # fmt: skip


def build(case: Case, name: str, as_installed: bool) -> Any:
    """A contestant of a case; `as_installed`: peers in float32 with torch's own AdamW, as their documentation shows."""
    if name == "supervised":
        return contestant("supervised", "vitmae", case.size, case.batch, bf16=case.bf16)
    peers_default = as_installed and name != "vitmae"
    bf16 = case.bf16 and not peers_default
    return contestant(case.kind, name, case.size, case.batch, bf16=bf16, fused=not peers_default)


def time_case(case: Case, rounds: int, as_installed: bool) -> dict[str, Timing]:
    """Seconds of a step of each contestant in each mode; the reference is this project's eager step."""
    steps = {}
    for name in ("vitmae", *case.rivals):
        step = build(case, name, as_installed)
        if "compiled" in case.modes:
            step.compile()
        for mode in case.modes:
            steps[f"{name}, {mode}"] = step.eager if mode == "eager" else step
    return interleave(steps, "vitmae, eager", rounds, warmup=2)


def memory_of(key: str, name: str, settings: argparse.Namespace) -> int:
    """Bytes that a contestant's training adds at its peak to a process that has imported everything."""
    command = [sys.executable, "-m", "benchmarks.step", "--case", key, "--memory-of", name]
    command += ["--threads", str(settings.threads)] + ["--quick"] * settings.quick
    command += ["--batch", str(settings.batch)] if settings.batch else []
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(run.stdout)["bytes"])


def measure_memory(case: Case, name: str, as_installed: bool) -> int:
    """`memory_of`, in this process: three eager steps."""
    contestant(case.kind if case.kind != "masked_patch" else "mae", "vitmae", TINY, 2, bf16=case.bf16)()  # imports
    before = resident_memory()
    step = build(case, name, as_installed)
    for _ in range(3):
        step.eager()
    return peak_memory() - before


def chosen(key: str, settings: argparse.Namespace) -> Case:
    """A case at the size that the command line asks for."""
    case = CASES[key]
    size = TINY if settings.quick else case.size
    batch = settings.batch or (2 if settings.quick else case.batch)
    return Case(case.title, case.kind, size, batch, case.bf16, case.modes, case.rivals)


def main(arguments_given: list[str] | None = None) -> int:
    """Time the cases that are asked for, print a table of each, and write results/step.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeatable; default: all")
    parser.add_argument("--batch", type=int, help="images; default: the case's")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--eager", action="store_true", help="leave compiled modes out")
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    keys = settings.case or list(CASES)
    if settings.memory_of:
        held = measure_memory(chosen(keys[0], settings), settings.memory_of, keys[0] == "defaults")
        print(json.dumps({"bytes": held}))
        return 0
    print(json.dumps(machine(settings.threads)))
    peaks = {bf16: matmul_rate(torch.bfloat16 if bf16 else torch.float32) for bf16 in (False, True)}
    print(f"matrix product: float32 {peaks[False] / 1e9:.0f} GFLOP/s, bf16 {peaks[True] / 1e9:.0f} GFLOP/s")
    results: dict[str, Any] = {"matmul_gflops": {"float32": peaks[False] / 1e9, "bf16": peaks[True] / 1e9}}
    for key in keys:
        case = chosen(key, settings)
        if settings.eager:
            case = Case(case.title, case.kind, case.size, case.batch, case.bf16, ("eager",), case.rivals)
        timings = time_case(case, settings.rounds, key == "defaults")
        gc.collect()
        asked = () if settings.no_memory else ("vitmae", *case.rivals)
        memory = {name: memory_of(key, name, settings) for name in asked}
        flops = training_flops(objective(case.kind, case.size)) * case.batch
        rows = []
        for name, timing in timings.items():
            held = memory.get(name.rpartition(",")[0]) if name.endswith("eager") else None
            share = flops / timing.median / peaks[case.bf16]
            rows.append([name, rate(case.batch / timing.median), f"{50 * timing.spread:.0f} %", f"{timing.ratio:.2f}",
                         f"{100 * share:.0f} %", f"{held / 2**30:.2f}" if held else ""])  # fmt: skip
        show(f"{case.title}, batch {case.batch}, {settings.threads} thread(s)",
             ["contestant", "images/s", "±", "to vitmae eager", "of peak", "memory, GiB"], rows)  # fmt: skip
        results[key] = {"batch": case.batch, "flops": flops, "timings": timings, "memory": memory}
    save("step" if not settings.case else "step." + ".".join(keys), settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
