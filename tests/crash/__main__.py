"""Kill every command at random moments, start it again until it ends, and compare what it made with an uninterrupted one.

    python -m tests.crash                                    50 SIGKILLs, 20 SIGTERMs and 10 SIGINTs of training, 5 of each other
    python -m tests.crash --kills 4 --terms 2 --ints 1       a small number of each
    python -m tests.crash --only "mae" --seed 3              some jobs, at other moments

Exit code 1 if anything is wrong; the folder of a job that went wrong stays, with the output of each start.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.crash.jobs import Job, jobs, make_inputs
from tests.crash.processes import Ending, run
from vitmae.interruption import ABORTED, INTERRUPTED
from vitmae.runs.exit import FAULT

_SIGNALS_PER_CHAIN = 4
"""So many signals at most, then the command runs to its end, so that a result is compared often."""
_SLOW_S = 15.0
"""A command that takes longer to end after a signal is reported."""


def main() -> int:
    """Test every job, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs of runs")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs of runs")
    parser.add_argument("--ints", type=int, default=10, help="SIGINTs of runs")
    parser.add_argument("--each", type=int, default=6, help="signals of each kind of job that is not a single run")
    parser.add_argument("--only", default="", help="jobs whose name contains this text")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments; printed")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    draw = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="vitmae-crash-"))
    ending = run(make_inputs(folder), folder / "inputs.log")
    assert ending.code == 0, ending.output
    chosen = [job for job in jobs(folder) if given.only in job.name]
    counts = {signal.SIGKILL: given.kills, signal.SIGTERM: given.terms, signal.SIGINT: given.ints}
    faults = []
    for job, signals in _shares(
        chosen, [sent for sent, count in counts.items() for _ in range(count)], given.each, draw
    ):
        faults += _test(job, signals, folder / job.name.replace(" ", "-").replace(",", ""), draw)
    print(f"{len(faults)} faults")
    if not faults:
        shutil.rmtree(folder)
    return FAULT if faults else 0


def _shares(
    chosen: list[Job], of_runs: list[signal.Signals], each: int, draw: random.Random
) -> Iterator[tuple[Job, list[signal.Signals]]]:
    """Each job and its signals: those of runs are divided among the runs, the other jobs get some of each kind."""
    runs = [job for job in chosen if job.is_run]
    draw.shuffle(of_runs)
    for job in chosen:
        if job.is_run:
            yield job, of_runs[runs.index(job) :: len(runs)]
        else:
            kinds = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
            yield job, [kinds[number % len(kinds)] for number in range(each)]


def _test(job: Job, signals: list[signal.Signals], folder: Path, draw: random.Random) -> list[str]:
    """Send a job all its signals, in chains of starts; return what went wrong, one line each."""
    place = folder / "whole"
    place.mkdir(parents=True)
    whole = run(job.words(place), place / "start.log")
    if whole.code:
        return [f"{job.name}: uninterrupted, it ends with {whole.code}: see {place}"]
    expected, length_s = job.result(place), whole.seconds
    faults, left, chains, slowest = [], signals[:], 0, 0.0
    while left:
        chains += 1
        place = folder / f"chain{chains}"
        place.mkdir()
        found, ends = _chain(job, left, place, length_s, draw)
        slowest = max([slowest, *ends])
        if not found:
            found = [f"{name} differs" for name in _different(expected, job.result(place))]
        faults += [f"{job.name}: {fault}: see {place}" for fault in found]
    print(
        f"{job.name:<22} {len(signals):>3} signals in {chains} chains, {length_s:4.1f} s whole, "
        f"at most {slowest:4.1f} s from signal to end, {len(faults)} faults",
        *faults,
        sep="\n",
        flush=True,
    )
    return faults


def _chain(
    job: Job, left: list[signal.Signals], place: Path, length_s: float, draw: random.Random
) -> tuple[list[str], list[float]]:
    """Start a job again and again until it has ended by itself; take signals from `left`."""
    faults, ends = [], []
    for start in range(_SIGNALS_PER_CHAIN + 1):
        is_last = start == _SIGNALS_PER_CHAIN or not left
        sent = None if is_last else left[-1]
        target = draw.choice(["all", "first", "other"] if job.has_ranks else ["all", "first"])
        ending = run(job.words(place), place / f"start{start}.log", sent, target, draw.uniform(0, length_s))
        if ending.sent is not None:
            left.pop()
            ends.append(ending.seconds)
        faults += [f"start {start} ({_describe(ending)}): {fault}" for fault in _wrong(job, ending)]
        if ending.code == 0 or is_last:
            return faults, ends
    return faults, ends


def _wrong(job: Job, ending: Ending) -> Iterator[str]:
    """What is wrong about the end of a start."""
    allowed = {0}  # the signal may come when all is done
    if ending.sent == signal.SIGKILL:
        allowed |= {FAULT} if ending.target == "other" else {-signal.SIGKILL}
    elif ending.sent is not None:
        allowed |= {INTERRUPTED, ABORTED} if ending.sent == signal.SIGINT else {INTERRUPTED}
        if not ending.output:
            allowed.add(-ending.sent)  # before the first line of main
    if ending.code not in allowed:
        yield f"it ends with {ending.code} instead of {sorted(allowed)}"
    if "Traceback" in ending.output:
        yield "it prints a traceback"
    if ending.orphans:
        yield f"{len(ending.orphans)} processes stay: {ending.orphans[0]}"
    if ending.sent is not None and ending.seconds > _SLOW_S:
        yield f"it ends after {ending.seconds:.0f} s"


def _describe(ending: Ending) -> str:
    if ending.sent is None:
        return "no signal"
    return f"{ending.sent.name} to {ending.target} at {ending.moment_s:.1f} s"


def _different(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]


if __name__ == "__main__":
    sys.exit(main())
