"""Where a model runs."""

import pytest
import torch

import vitmae
from vitmae.errors import UserError
from vitmae.trained.device import find_device


def test_a_device_may_be_named_or_given():
    assert find_device(torch.device("cpu")) == find_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(UserError, match=f"device={device}: .*; leave it out, or set device=cpu"):
        find_device(device)


def test_a_build_without_cuda_is_as_good_as_no_gpu(monkeypatch):
    def refuse(*size, device):
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UserError, match="device=cuda: Torch not compiled with CUDA enabled"):
        find_device("cuda")


def test_a_device_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="device=foo"):
        vitmae.load(tmp_path / "nothing", device="foo")
