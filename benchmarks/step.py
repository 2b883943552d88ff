"""Forward + backward + AdamW: this project against what else one could pick, side by side.

    python -m benchmarks.step                             all cases
    python -m benchmarks.step --case mae_b16 --batch 4    one of them, smaller

Every contestant has the same sizes, precision, batch, allocator and fused AdamW, and is timed eager and compiled, each
in turn, round by round, in one process. In the cases `..._installed` and `defaults` each is as it comes: peers with
torch's own AdamW and the system's allocator, and in `defaults` in float32 as their documentation shows. There each
round starts a process of each, one after the other. Memory is measured of each contestant alone, in its own process.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.contestants import B16, CIFAR, PEERS, S16, TINY, Size, Step, contestant, objective
from benchmarks.measure import (
    LARGE_PAGES,
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
    start_with_large_pages,
)
from vitmae.models.flops import training_flops
from vitmae.training.allocator import keep_freed_memory


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
        apart: each as it comes, in processes of their own.
        peers_bf16: whether peers use bf16 where `apart`.
    """

    title: str
    kind: str
    size: Size
    batch: int
    bf16: bool = True
    modes: tuple[str, ...] = ("eager", "compiled")
    rivals: tuple[str, ...] = ()
    apart: bool = False
    peers_bf16: bool = True


_MAE, _ViT = tuple(PEERS["mae"]), tuple(PEERS["supervised"])
CASES = {
    "mae_b16": Case("MAE, ViT-B/16, 224 px, bf16", "mae", B16, 16, rivals=_MAE),
    "mae_b16_fp32": Case("MAE, ViT-B/16, 224 px, float32", "mae", B16, 16, False, ("eager",), _MAE),
    "mae_cifar": Case("MAE, 192x12 + 192x4, 32 px, patch 4, bf16", "mae", CIFAR, 256, rivals=_MAE),
    "mae_cifar_fp32": Case("MAE, 192x12 + 192x4, 32 px, patch 4, float32", "mae", CIFAR, 256, False, ("eager",), _MAE),
    "mae_cifar_installed": Case("MAE, 192x12 + 192x4, 32 px, patch 4, bf16, peers as installed", "mae", CIFAR, 256,
                                modes=("eager",), rivals=_MAE, apart=True),
    "vit_s16": Case("Supervised, ViT-S/16, 224 px, bf16", "supervised", S16, 16, rivals=_ViT),
    "vit_s16_fp32": Case("Supervised, ViT-S/16, 224 px, float32", "supervised", S16, 16, False, ("eager",), _ViT),
    "masked_patch": Case("Masked patch prediction against supervised, ViT-S/16, 224 px, bf16", "masked_patch", S16, 16,
                         modes=("eager",), rivals=("supervised",)),
    "defaults": Case("MAE, ViT-B/16, 224 px, each with its own defaults", "mae", B16, 16, modes=("eager",),
                     rivals=_MAE, apart=True, peers_bf16=False),
}  # fmt: skip


def build(case: Case, name: str) -> Step:
    """A contestant of a case."""
    if name == "supervised":
        return contestant("supervised", "vitmae", case.size, case.batch, bf16=case.bf16)
    as_it_comes = case.apart and name != "vitmae"
    bf16 = case.bf16 and (case.peers_bf16 or not as_it_comes)
    return contestant(case.kind, name, case.size, case.batch, bf16=bf16, fused=not as_it_comes)


def time_together(case: Case, rounds: int) -> dict[str, Timing]:
    """Seconds of a step of each contestant in each mode; the reference is this project's eager step."""
    steps = {}
    for name in ("vitmae", *case.rivals):
        step = build(case, name)
        if "compiled" in case.modes:
            step.compile()
        for mode in case.modes:
            steps[f"{name}, {mode}"] = step.eager if mode == "eager" else step
    return interleave(steps, "vitmae, eager", rounds, warmup=2)


def time_apart(key: str, case: Case, settings: argparse.Namespace) -> tuple[dict[str, Timing], dict[str, int]]:
    """The same of a case whose contestants have processes of their own: seconds of a step, and memory."""
    seconds: dict[str, list[float]] = {name: [] for name in ("vitmae", *case.rivals)}
    memory = {}
    for _ in range(settings.rounds):
        for name, own in seconds.items():
            measured = alone(key, name, settings)
            own.append(measured["seconds"])
            memory[name] = int(measured["bytes"])
    timings = {
        f"{name}, eager": Timing(own, [base / mine for base, mine in zip(seconds["vitmae"], own, strict=True)])
        for name, own in seconds.items()
    }
    return timings, memory


def alone(key: str, name: str, settings: argparse.Namespace) -> dict[str, float]:
    """`measure_alone` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.step", "--case", key, "--alone", name]
    command += ["--threads", str(settings.threads)] + ["--quick"] * settings.quick
    command += ["--batch", str(settings.batch)] if settings.batch else []
    environment = {**os.environ, LARGE_PAGES: str(int(_is_tuned(CASES[key], name)))}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def measure_alone(case: Case, name: str) -> dict[str, float]:
    """Seconds of an eager step, and the bytes that training adds at its peak to a process that has imported all."""
    warm = contestant("mae", "vitmae", TINY, 2, bf16=case.bf16)
    warm.eager()
    before = resident_memory()
    step = build(case, name)
    timing = interleave({name: step.eager}, name, rounds=3, warmup=1)[name]
    return {"seconds": timing.median, "bytes": peak_memory() - before}


def _is_tuned(case: Case, name: str) -> bool:
    """Whether a contestant gets this project's allocator settings: all do, but for peers as they come."""
    return not case.apart or name == "vitmae"


def chosen(key: str, settings: argparse.Namespace) -> Case:
    """A case at the size that the command line asks for."""
    case = CASES[key]
    size = TINY if settings.quick else case.size
    modes = ("eager",) if settings.eager else case.modes
    return replace(case, size=size, batch=settings.batch or (2 if settings.quick else case.batch), modes=modes)


def main(arguments_given: list[str] | None = None) -> int:
    """Time the cases that are asked for, print a table of each, and write results/step.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeatable; default: all")
    parser.add_argument("--batch", type=int, help="images; default: the case's")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--eager", action="store_true", help="leave compiled modes out")
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    keys = settings.case or list(CASES)
    if settings.alone:
        case = chosen(keys[0], settings)
        if _is_tuned(case, settings.alone):
            keep_freed_memory()
        print(json.dumps(measure_alone(case, settings.alone)))
        return 0
    keep_freed_memory()
    print(json.dumps(machine(settings.threads)))
    peaks = {bf16: matmul_rate(torch.bfloat16 if bf16 else torch.float32) for bf16 in (False, True)}
    print(f"matrix product: float32 {peaks[False] / 1e9:.0f} GFLOP/s, bf16 {peaks[True] / 1e9:.0f} GFLOP/s")
    results: dict[str, Any] = {"matmul_gflops": {"float32": peaks[False] / 1e9, "bf16": peaks[True] / 1e9}}
    for key in keys:
        case = chosen(key, settings)
        if case.apart:
            timings, memory = time_apart(key, case, settings)
        else:
            timings = time_together(case, settings.rounds)
            gc.collect()
            asked = () if settings.no_memory else ("vitmae", *case.rivals)
            memory = {name: int(alone(key, name, settings)["bytes"]) for name in asked}
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
    if "--alone" not in sys.argv:
        start_with_large_pages()
    sys.exit(main())
