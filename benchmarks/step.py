"""Forward + backward + AdamW: this project and its peers, side by side.

    python -m benchmarks.step                             all cases
    python -m benchmarks.step --case mae_b16 --batch 4    one of them, smaller

Each contestant has its own process, as a training run does, and takes some steps before it is timed; then the processes
take one step each in turn, round by round. (In one process they would share a fragmented heap, which slows all of
them.) All have the same sizes, precision, batch, allocator and fused AdamW, and are timed eager and compiled. In the
cases `..._installed` and `defaults` each runs as installed: peers with torch's own AdamW and the system's allocator,
and in `defaults` in float32 as their documentation shows.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.contestants import B16, CIFAR, PEERS, S16, TINY, Size, Step, contestant, objective
from benchmarks.measure import (
    LARGE_PAGES,
    Timing,
    arguments,
    clock_for,
    machine,
    matmul_rate,
    peak_memory,
    rate,
    resident_memory,
    save,
    show,
    start_with_large_pages,
)
from vitmae.allocator import keep_freed_memory
from vitmae.models.objective import training_flops

_WARMUP = 4  # steps, after which the heap no longer grows


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
        as_installed: peers are not given this project's allocator and optimiser.
        peers_bf16: whether peers use bf16 where they are as installed.
    """

    title: str
    kind: str
    size: Size
    batch: int
    bf16: bool = True
    modes: tuple[str, ...] = ("eager", "compiled")
    rivals: tuple[str, ...] = ()
    as_installed: bool = False
    peers_bf16: bool = True

    def is_tuned(self, name: str) -> bool:
        """Whether a contestant has this project's allocator and optimiser."""
        return not self.as_installed or name == "vitmae"


_MAE, _ViT = tuple(PEERS["mae"]), tuple(PEERS["supervised"])
CASES = {
    "mae_b16": Case("MAE, ViT-B/16, 224 px, bf16", "mae", B16, 16, rivals=_MAE),
    "mae_b16_fp32": Case("MAE, ViT-B/16, 224 px, float32", "mae", B16, 16, False, ("eager",), _MAE),
    "mae_cifar": Case("MAE, 192x12 + 192x4, 32 px, patch 4, bf16", "mae", CIFAR, 256, rivals=_MAE),
    "mae_cifar_fp32": Case("MAE, 192x12 + 192x4, 32 px, patch 4, float32", "mae", CIFAR, 256, False, ("eager",), _MAE),
    "mae_cifar_installed": Case(
        "MAE, 192x12 + 192x4, 32 px, patch 4, bf16, peers as installed",
        "mae",
        CIFAR,
        256,
        modes=("eager",),
        rivals=_MAE,
        as_installed=True,
    ),
    "vit_s16": Case("Supervised, ViT-S/16, 224 px, bf16", "supervised", S16, 16, rivals=_ViT),
    "vit_s16_fp32": Case("Supervised, ViT-S/16, 224 px, float32", "supervised", S16, 16, False, ("eager",), _ViT),
    "masked_patch": Case(
        "Masked patch prediction against supervised, ViT-S/16, 224 px, bf16",
        "masked_patch",
        S16,
        16,
        modes=("eager",),
        rivals=("supervised",),
    ),
    "defaults": Case(
        "MAE, ViT-B/16, 224 px, each with its own defaults",
        "mae",
        B16,
        16,
        modes=("eager",),
        rivals=_MAE,
        as_installed=True,
        peers_bf16=False,
    ),
}


def build(case: Case, name: str) -> Step:
    """A contestant of a case."""
    if name == "supervised":
        return contestant("supervised", "vitmae", case.size, case.batch, bf16=case.bf16)
    tuned = case.is_tuned(name)
    bf16 = case.bf16 and (case.peers_bf16 or tuned)
    return contestant(case.kind, name, case.size, case.batch, bf16=bf16, fused=tuned)


class Worker:
    """A contestant in its own process, which takes a step on request.

    Attributes:
        memory: the bytes that eager training adds at its peak to a process that has imported all.
    """

    def __init__(self, key: str, name: str, settings: argparse.Namespace) -> None:
        command = [sys.executable, "-m", "benchmarks.step", "--case", key, "--alone", name]
        command += ["--threads", str(settings.threads)]
        command += ["--quick"] * settings.quick + ["--eager"] * settings.eager
        command += ["--batch", str(settings.batch)] if settings.batch else []
        environment = {**os.environ, LARGE_PAGES: str(int(CASES[key].is_tuned(name)))}
        self.name = name
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.memory = int(self._answer())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # it ends when its input ends

    def step(self, mode: str) -> float:
        """Seconds of one step, eager or compiled."""
        print(mode, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> float:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.communicate()
            raise RuntimeError(f"the process of {self.name} ended with code {self.process.returncode}")
        return float(line)


def serve(case: Case, name: str) -> None:
    """The process of a `Worker`: build, warm up, print the memory that this took, then take a step for each line."""
    if case.is_tuned(name):
        keep_freed_memory()
    contestant("mae", "vitmae", TINY, 2, bf16=case.bf16).eager()
    before = resident_memory()
    step = build(case, name)
    for _ in range(_WARMUP):
        step.eager()
    memory = peak_memory() - before
    if "compiled" in case.modes:
        step.compile()
        for _ in range(_WARMUP):
            step()
    print(memory, flush=True)
    clock = clock_for(torch.get_num_threads())
    for line in sys.stdin:
        run = step.eager if line.strip() == "eager" else step
        start = clock()
        run()
        print(clock() - start, flush=True)


def compare(key: str, case: Case, settings: argparse.Namespace) -> tuple[dict[str, Timing], dict[str, int]]:
    """Seconds of a step of each contestant in each mode, the reference being this project's eager step; and memory."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(key, name, settings)) for name in ("vitmae", *case.rivals)]
        seconds: dict[str, list[float]] = {f"{w.name}, {mode}": [] for w in workers for mode in case.modes}
        for _ in range(settings.rounds):
            for worker in workers:
                for mode in case.modes:
                    seconds[f"{worker.name}, {mode}"].append(worker.step(mode))
        memory = {worker.name: worker.memory for worker in workers}
    reference = seconds["vitmae, eager"]
    timings = {
        name: Timing(own, [base / mine for base, mine in zip(reference, own, strict=True)])
        for name, own in seconds.items()
    }
    return timings, memory


def chosen(key: str, settings: argparse.Namespace) -> Case:
    """A case at the size that the command line gives."""
    case = CASES[key]
    size = TINY if settings.quick else case.size
    modes = ("eager",) if settings.eager else case.modes
    return replace(case, size=size, batch=settings.batch or (2 if settings.quick else case.batch), modes=modes)


def main(arguments_given: list[str] | None = None) -> int:
    """Time the chosen cases, print a table of each, and write results/step.json."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeatable; default: all")
    parser.add_argument("--batch", type=int, help="images; default: the case's")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--eager", action="store_true", help="leave compiled modes out")
    settings = parser.parse_args(arguments_given)
    torch.set_num_threads(settings.threads)
    keys = settings.case or list(CASES)
    if settings.alone:
        serve(chosen(keys[0], settings), settings.alone)
        return 0
    print(json.dumps(machine(settings.threads)))
    peaks = {bf16: matmul_rate(torch.bfloat16 if bf16 else torch.float32) for bf16 in (False, True)}
    print(f"matrix product: float32 {peaks[False] / 1e9:.0f} GFLOP/s, bf16 {peaks[True] / 1e9:.0f} GFLOP/s")
    results: dict[str, Any] = {"matmul_gflops": {"float32": peaks[False] / 1e9, "bf16": peaks[True] / 1e9}}
    for key in keys:
        case = chosen(key, settings)
        timings, memory = compare(key, case, settings)
        flops = training_flops(objective(case.kind, case.size)) * case.batch
        rows = []
        for name, timing in timings.items():
            held = memory[name.rpartition(",")[0]] if name.endswith("eager") else None
            share = flops / timing.median / peaks[case.bf16]
            rows.append(
                [
                    name,
                    rate(case.batch / timing.median),
                    f"{50 * timing.spread:.0f} %",
                    f"{timing.ratio:.2f}",
                    f"{100 * share:.0f} %",
                    f"{held / 2**30:.2f}" if held else "",
                ]
            )
        show(
            f"{case.title}, batch {case.batch}, {settings.threads} thread(s)",
            ["contestant", "images/s", "±", "to vitmae eager", "of peak", "memory, GiB"],
            rows,
        )
        results[key] = {"batch": case.batch, "flops": flops, "timings": timings, "memory": memory}
    save("step" if not settings.case else "step." + ".".join(keys), settings, results)
    return 0


if __name__ == "__main__":
    if "--alone" not in sys.argv:
        start_with_large_pages()
    sys.exit(main())
