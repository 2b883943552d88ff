"""What the benchmarks share: interleaved timing, the machine, a table and a JSON file.

    A B C A B C A B C ...   -> per contestant the median and its spread, and the ratio to a reference round by round

The speed of a shared machine drifts, so the ratio of two times measured one after the other says more than a single
time. Every comparison is such a ratio, after each contestant has warmed up. One thread is timed in processor time,
which other processes on the same machine disturb least; several threads, and GPUs, in wall time.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from vitmae.allocator import use_large_pages

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # what `vitmae.allocator.use_large_pages` sets
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Timing:
    """The times of a contestant.

    Attributes:
        seconds: of each round.
        ratios: of each round, how many times faster than the reference in the same round.
    """

    seconds: list[float]
    ratios: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds, in seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """The middle half of the rounds, as a share of the median; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def ratio(self) -> float:
        """How many times faster than the reference: the median of the rounds' ratios."""
        return median(self.ratios)


def interleave(
    contestants: Mapping[str, Callable[[], Any]],
    reference: str,
    rounds: int,
    warmup: int = 1,
    repeats: int = 1,
    wall: bool = False,
) -> dict[str, Timing]:
    """Time each contestant once a round, one after the other.

    Args:
        contestants: what is timed, by name.
        reference: the name of the one that the others are compared with.
        rounds: how often all are timed.
        warmup: untimed calls of each beforehand.
        repeats: calls that are timed as one, for what is short.
        wall: time by the clock on the wall, for what other processes take part in.
    """
    for contestant in contestants.values():
        for _ in range(warmup):
            contestant()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    clock = time.perf_counter if wall else clock_for(torch.get_num_threads())
    for _ in range(rounds):
        for name, contestant in contestants.items():
            start = clock()
            for _ in range(repeats):
                contestant()
            seconds[name].append((clock() - start) / repeats)
    return {
        name: Timing(own, [base / mine for base, mine in zip(seconds[reference], own, strict=True)])
        for name, own in seconds.items()
    }


def clock_for(threads: int) -> Callable[[], float]:
    """Processor time for a single thread; wall time for several, or for a GPU."""
    return time.process_time if threads == 1 and not torch.cuda.is_available() else time.perf_counter


def matmul_rate(dtype: torch.dtype, device: str = "cpu", size: int = 2048, attempts: int = 25) -> float:
    """FLOP/s of a square matrix product, the best of several: the peak that torch reaches on this machine."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    clock = clock_for(torch.get_num_threads())
    for _ in range(attempts):
        start = clock()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 2 * size**3 / best


def start_with_large_pages() -> None:
    """Start this command again with large pages, as in a run: torch reads the setting when it is imported."""
    if LARGE_PAGES not in os.environ:
        use_large_pages()
        os.execv(sys.executable, sys.orig_argv)


def peak_memory() -> int:
    """The peak resident memory of this process in bytes (Linux).

    Not getrusage's figure, which a process takes over from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def resident_memory() -> int:
    """The resident memory of this process now, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="torch's threads")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is timed")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? (its figures say nothing)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the JSON files")
    return parser


def machine(threads: int) -> dict[str, Any]:
    """The machine and the versions of a measurement."""
    cpu, flags = platform.processor(), set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            cpu = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "units": units,
        "threads": threads,
        "load": round(os.getloadavg()[0], 2),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--dirty"]
    run = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return run.stdout.strip() or "unknown"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    print(f"\n{title}\n")
    for line in lines:
        cells = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("| " + " | ".join(cells) + " |")
    sys.stdout.flush()


def timing_row(name: str, timing: Timing, images: int) -> list[str]:
    """Contestant, images a second, spread and ratio, as cells."""
    return [name, rate(images / timing.median), f"± {50 * timing.spread:.0f} %", f"{timing.ratio:.2f}"]


def rate(value: float) -> str:
    """A number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def save(name: str, settings: argparse.Namespace, results: Any) -> Path:
    """Write results/<name>.json: the machine, the settings and what was measured (a `Timing` as its rounds)."""
    folder: Path = settings.results
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {key: value for key, value in vars(settings).items() if not isinstance(value, Path)}
    path = folder / f"{name}{'.quick' if settings.quick else ''}.json"
    payload = {"machine": machine(torch.get_num_threads()), "settings": chosen, "results": results}
    path.write_text(json.dumps(payload, indent=1, default=asdict) + "\n")
    print(f"\nwritten to {path}")
    return path
