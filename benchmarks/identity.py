"""Fingerprints of short training runs: after a change that must not change results they are equal, bit for bit.

    python -m benchmarks.identity before.json        on the commit before the change
    python -m benchmarks.identity after.json         on the commit after it
    diff before.json after.json                      prints nothing if no number has changed

A fingerprint covers metrics.csv, without its column of times, and the final weights. The runs are the default job, and
20 steps of each objective in each precision on one process and on two. The images are large enough for a processor's
bf16 kernels.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

TIMES = "train/images_per_s"
DEFAULT_JOB = "trainer=cpu"
SHORT_JOB = (
    "data=shapes trainer=cpu data.source.num_train=2560 data.source.num_val=256 trainer.max_epochs=1 "
    "trainer.log_every_n_steps=1 model={} trainer.precision={} trainer.devices={} data.batch_size={}"
)


def jobs() -> dict[str, str]:
    """Each job's overrides by its name."""
    cpuinfo = Path("/proc/cpuinfo")
    computes_bf16 = cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()
    precisions = ["32-true", *(["bf16-mixed"] if computes_bf16 else [])]
    found = {"default": DEFAULT_JOB}
    for model, precision, processes in product(("mae", "masked_patch", "vit"), precisions, (1, 2)):
        found[f"{model}, {precision}, {processes}"] = SHORT_JOB.format(model, precision, processes, 128 // processes)
    return found


def fingerprint(overrides: str) -> dict[str, str]:
    """Train and return the hashes of metrics and weights."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "vitmae.train", *overrides.split(), "logger=csv", f"hydra.run.dir={run}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "WANDB_MODE": "offline"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{overrides}\n{done.stdout}{done.stderr}")
        with (run / "metrics.csv").open() as table:
            rows = [{name: value for name, value in row.items() if name != TIMES} for row in csv.DictReader(table)]
        state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    weights = hashlib.sha256()
    for name, value in sorted(state.items()):
        weights.update(name.encode())
        weights.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return {"metrics": hashlib.sha256(json.dumps(rows).encode()).hexdigest(), "weights": weights.hexdigest()}


def main() -> None:
    """Fingerprint every job, and write the file after each, so that an interruption loses one job only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the JSON file to write")
    parser.add_argument("--only", default="", help="jobs whose name contains this text")
    arguments = parser.parse_args()
    found: dict[str, dict[str, str]] = {}
    for name, overrides in jobs().items():
        if arguments.only in name:
            found[name] = fingerprint(overrides)
            arguments.out.write_text(json.dumps(found, indent=2) + "\n")
            print(name, found[name]["weights"][:12], found[name]["metrics"][:12], flush=True)


if __name__ == "__main__":
    main()
