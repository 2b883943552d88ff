"""Each benchmark runs from end to end at tiny sizes; its figures are not looked at."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks import features, loader, measure, overhead, scale, startup, step


def results(folder, name):
    written = json.loads((folder / f"{name}.quick.json").read_text())
    assert written["machine"]["torch"] == torch.__version__
    return written["results"]


def quick(benchmark, tmp_path, *more):
    assert benchmark.main(["--quick", "--threads", "1", "--rounds", "2", "--results", str(tmp_path), *more]) == 0


def test_ratios_are_of_the_same_round_and_more_is_faster(monkeypatch):
    ticks = iter(range(0, 1000))
    now = [0.0]
    monkeypatch.setattr(measure, "clock_for", lambda threads: lambda: now[0])

    def takes(seconds):
        return lambda: now.__setitem__(0, now[0] + seconds * (1 + next(ticks) // 2 % 3))  # the machine drifts

    timings = measure.interleave({"slow": takes(4.0), "fast": takes(1.0)}, "slow", rounds=6, warmup=0)
    assert timings["fast"].ratios == [4.0] * 6
    assert timings["slow"].ratios == [1.0] * 6
    assert timings["fast"].median == 2.0
    assert timings["fast"].spread > 0


def test_repeats_are_timed_as_one_and_warm_up_is_not_timed():
    calls = []
    timings = measure.interleave({"one": lambda: calls.append(1)}, "one", rounds=3, warmup=2, repeats=4)
    assert len(calls) == 2 + 3 * 4
    assert len(timings["one"].seconds) == 3


def test_the_rate_of_a_product_is_of_its_operations(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(measure, "clock_for", lambda threads: lambda: next(now))
    assert measure.matmul_rate(torch.float32, size=8) == 2 * 8**3


def test_a_table_is_aligned_markdown(capsys):
    measure.show("Title", ["name", "s"], [["a", "1.5"], ["longer", "12"]])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[2:] == ["| name   |   s |", "| ------ | --- |", "| a      | 1.5 |", "| longer |  12 |"]


def test_scale(tmp_path):
    quick(scale, tmp_path)
    written = results(tmp_path, "scale")
    assert set(written) == {"bf16", "image size", "batch", "mask ratio", "depth"}
    flops = [point["flops"] for point in written["image size"].values()]
    assert flops == sorted(flops)


def test_features(tmp_path):
    quick(features, tmp_path)
    assert results(tmp_path, "features")["knn"]["same"] > 0.999


def test_peak_memory_is_of_this_process_and_remembers_what_was_freed():
    script = (
        "import benchmarks.measure as m; before = m.peak_memory(); bytes(bytearray(2**28)); "
        "print(m.peak_memory() - before, m.resident_memory() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())
    assert peak > 2**28 > now


@pytest.mark.slow
def test_startup(tmp_path):
    quick(startup, tmp_path)
    assert set(results(tmp_path, "startup")["wall_s"]) == {"--help", "--cfg job"}


@pytest.mark.slow
def test_overhead(tmp_path):
    quick(overhead, tmp_path)
    assert set(results(tmp_path, "overhead")["timings"]) == {"bare loop", "Trainer"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")  # timm's open files
def test_loader(tmp_path):
    quick(loader, tmp_path)
    written = results(tmp_path, "loader")
    assert set(written["one_core"]["images_per_s"]) == {
        "torchvision",
        "timm",
        "vitmae",
        "vitmae, pre-shrunk",
        "vitmae, bytes",
        "bare decode + resize",
    }
    assert 0 <= written["waiting"]["share"] < 1


@pytest.mark.slow
def test_step(tmp_path):
    for package in ("lightly", "vit_pytorch", "transformers"):
        pytest.importorskip(package)
    command = [
        sys.executable,
        "-m",
        "benchmarks.step",
        "--quick",
        "--eager",
        "--threads",
        "1",
        "--case",
        "mae_b16",
        "--case",
        "vit_s16",
        "--case",
        "mae_cifar_installed",
        "--rounds",
        "1",
        "--results",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True)
    written = results(tmp_path, "step.mae_b16.vit_s16.mae_cifar_installed")
    assert set(written["mae_cifar_installed"]["memory"]) == {"vitmae", "transformers", "lightly", "vit-pytorch"}
    assert set(written["mae_b16"]["timings"]) == {
        f"{name}, eager" for name in ("vitmae", "transformers", "lightly", "vit-pytorch")
    }
    with pytest.raises(RuntimeError, match="the process of nobody ended with code 1"):
        step.Worker("mae_b16", "nobody", argparse.Namespace(threads=1, quick=True, eager=True, batch=None))


@pytest.mark.slow
def test_the_gpu_script_goes_through_everything_on_a_processor_and_imports_neither_hydra_nor_wandb(tmp_path):
    pytest.importorskip("transformers")
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['hydra', 'omegaconf', 'wandb'])); "
        "from benchmarks.gpu import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "--tiny", "--device", "cpu", "--results", str(tmp_path)]
    without_compiler = os.environ | {"TORCHDYNAMO_DISABLE": "1"}  # which takes minutes
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=without_compiler)
    assert done.returncode == 0, done.stderr
    written = results(tmp_path, "gpu")
    assert set(written) == {"matmul_flops", "step", "cifar", "feed"}
    assert set(written["step"]["b16"]) == {"vitmae", "transformers"}
    assert all(0 < loss < 2 for loss in written["cifar"]["losses"])  # about 1, of standardised patches
