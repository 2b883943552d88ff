import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import ctypes, re, resource, sys
from vitmae.allocator import keep_freed_memory, use_large_pages
if "large" in sys.argv: use_large_pages()
import torch
kept = "keep" in sys.argv and keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
    piece = libc.malloc(2**26)
    ctypes.memset(piece, 1, 2**26)
    libc.free(piece)
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = torch.ones(16, 2**20)
large = sum(map(int, re.findall(r"AnonHugePages:\\s+(\\d+)", open("/proc/self/smaps").read()))) * 1024
print(int(kept), faults, large)
"""  # steps of 64 MiB


def measure(*arguments):
    command = [sys.executable, "-c", MEASURE, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_a_step_frees_is_there_for_the_next():
    faults = measure()[1]
    kept, faults_kept, _ = measure("keep")
    assert kept == (platform.libc_ver()[0] == "glibc")
    assert not kept or faults_kept * 10 < faults


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux's pages")
def test_a_large_tensor_lies_on_large_pages_where_the_kernel_grants_them():
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[madvise]" not in setting.read_text():
        pytest.skip("here they are always or never granted")
    assert measure()[2] < 2**24
    assert measure("large")[2] > 2**25


def test_a_users_own_choice_of_pages_stays(monkeypatch):
    from vitmae.allocator import use_large_pages

    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
