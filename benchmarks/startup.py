"""The time to start: `--help`, `--cfg job`, and the first step of the default job.

    python -m benchmarks.startup

Each is a fresh process, in turn with the imports that it is compared with. The first round is not counted: after it,
files are in the page cache. The results are seconds of wall time, which a user waits, and of processor time, which
other processes on the same machine disturb least.
"""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median

from benchmarks.measure import arguments, save, show

_FIRST_STEP = """
import os, sys
import vitmae.train as train
build = train.build
def watched(node, **arguments):
    built = build(node, **arguments)
    if hasattr(built, "training_step"):
        built.on_train_batch_end = lambda *given: os._exit(0)
    return built
train.build = watched
sys.exit(train.main(sys.argv[1:]) or 1)
"""  # it ends after the first step; a run that gets to its end is a failure

_IMPORTS = "import torch, lightning, timm"


def commands(folder: str) -> dict[str, list[str]]:
    """The command lines, by name."""
    job = ["logger=csv", "trainer.accelerator=cpu", f"runs={folder}"]
    return {
        "import torch": ["-c", "import torch"],
        _IMPORTS: ["-c", _IMPORTS],
        "--help": ["-m", "vitmae.train", "--help"],
        "--cfg job": ["-m", "vitmae.train", "--cfg", "job", f"runs={folder}"],
        "first step": ["-c", _FIRST_STEP, *job],
    }


def run(command: list[str]) -> tuple[float, float]:
    """Seconds of a fresh process: wall time, and processor time with that of its children.

    Raises:
        RuntimeError: if it failed.
    """
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()  # before waiting: a full pipe would stop the process
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{command} failed:\n{said.decode()}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def main(arguments_given: list[str] | None = None) -> int:
    """Start everything in turn, print a table, and write results/startup.json."""
    settings = arguments(__doc__ or "").parse_args(arguments_given)
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    rounds = 1 if settings.quick else settings.rounds
    with tempfile.TemporaryDirectory() as folder:
        chosen = commands(folder)
        if settings.quick:
            chosen = {name: chosen[name] for name in ("--help", "--cfg job")}
        else:
            for command in chosen.values():
                run(command)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for _ in range(rounds):
            for name, command in chosen.items():
                taken[name].append(run(command))
    walls = {name: median(wall for wall, _ in times) for name, times in taken.items()}
    cpus = {name: median(cpu for _, cpu in times) for name, times in taken.items()}
    rows = [[name, f"{walls[name]:.2f}", f"{cpus[name]:.2f}"] for name in chosen]
    show("Start", ["what", "s", "processor s"], rows)
    results = {"wall_s": walls, "processor_s": cpus, "rounds": taken}
    if "first step" in chosen:
        ratio = median(b[1] / a[1] for a, b in zip(taken[_IMPORTS], taken["first step"], strict=True))
        print(f"\nthe first step is done after {ratio:.2f} times the processor time of `{_IMPORTS}`")
        results["first_step_to_imports"] = ratio
    save("startup", settings, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
