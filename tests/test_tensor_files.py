import argparse
import pickle
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.parts import Evil
from vitmae import tensor_files
from vitmae.errors import UserError
from vitmae.plain_files import read_json
from vitmae.tensor_files import read_file, write_safetensors

STATE = {"a": torch.arange(1000.0)}


class Plain:
    """An object of somebody's own class: harmless, but not tensors."""


def written(folder, kind):
    path = folder / f"weights.{kind}"
    if kind == "safetensors":
        save_file(STATE, path)
    elif kind == "npz":
        np.savez(path, a=STATE["a"].numpy())
    else:
        torch.save(STATE, path)
    return path


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_a_file_is_read_by_its_content_whatever_its_name(tmp_path, kind):
    path = written(tmp_path, kind).rename(tmp_path / "weights.dat")
    assert torch.equal(read_file(path)["a"], STATE["a"])


@pytest.mark.parametrize("layout", ["zip", "legacy", "raw", "raw4"])
def test_a_pickle_with_code_in_it_is_refused_and_its_code_not_run(tmp_path, layout):
    path, proof = tmp_path / "evil.pth", tmp_path / "owned"
    content = {"model": {"a": torch.ones(2), "b": Evil(proof)}}
    if layout.startswith("raw"):
        path.write_bytes(pickle.dumps({"b": Evil(proof)}, protocol=4 if layout == "raw4" else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(UserError, match="refused") as error:
        read_file(path)
    assert "\n" not in str(error.value)
    assert not proof.exists()


def test_the_proof_of_the_test_above_would_be_there_had_the_code_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "owned")))
    assert (tmp_path / "owned").exists()


def test_pickled_objects_in_an_npz_are_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", a=np.array([Evil(tmp_path / "owned")], dtype=object))
    with pytest.raises(UserError, match="refused"):
        read_file(tmp_path / "evil.npz")
    assert not (tmp_path / "owned").exists()


def test_an_object_that_is_no_tensor_is_refused_by_its_name(tmp_path):
    torch.save({"model": Plain()}, tmp_path / "object.pth")
    with pytest.raises(UserError, match=r"Plain.*save its state_dict alone"):
        read_file(tmp_path / "object.pth")


def test_the_arguments_that_the_published_mae_code_keeps_do_no_harm(tmp_path):
    torch.save({"model": STATE, "args": argparse.Namespace(epochs=3)}, tmp_path / "mae.pth")
    assert torch.equal(read_file(tmp_path / "mae.pth")["model"]["a"], STATE["a"])


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_one_clear_line(tmp_path, kind, share):
    path = written(tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=rf"weights\.{kind} is damaged") as error:
        read_file(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "npz"])
def test_each_flipped_byte_is_found_or_changes_nothing(tmp_path, kind):
    path = written(tmp_path, kind)
    if kind == "safetensors":
        write_safetensors(STATE, path)
    whole, found = bytearray(path.read_bytes()), 0
    for position in [*range(0, 300, 7), *range(300, len(whole) - 300, 97), *range(len(whole) - 300, len(whole), 7)]:
        whole[position] ^= 4
        path.write_bytes(whole)
        whole[position] ^= 4
        try:
            assert torch.equal(read_file(path)["a"], STATE["a"])
        except UserError as error:
            found += 1
            assert "\n" not in str(error)
    assert found > 40


def test_tensors_of_this_project_are_written_with_a_checksum_that_others_can_ignore(tmp_path):
    state = {
        "a": torch.ones(2, 3).T,
        "b": torch.zeros(()),
        "c": torch.zeros(0),
        "d": torch.ones(3, dtype=torch.bfloat16),
    }
    write_safetensors(state, tmp_path / "x.safetensors")
    for read in (read_file, load_file):
        assert all(torch.equal(tensor, state[name]) for name, tensor in read(tmp_path / "x.safetensors").items())
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"sha256": "0"})
    with pytest.raises(UserError, match="SHA-256"):
        read_file(tmp_path / "x.safetensors")


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path):
    torch.save({"mean": torch.zeros(1).expand(10**12)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"its tensor mean is larger than the file"):
        read_file(tmp_path / "x.pth")


@pytest.mark.parametrize("tensor", [torch.zeros(3).to_sparse(), torch.empty(3, device="meta")])
def test_a_tensor_that_is_not_dense_is_refused(tmp_path, tensor):
    torch.save({"a": tensor}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="is not a dense tensor"):
        read_file(tmp_path / "x.pth")


def test_a_compressed_record_and_an_array_of_zeros_that_fills_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_files, "_MOST_UNPACKED", 2**20)
    torch.save(STATE, tmp_path / "x.pth")
    with ZipFile(tmp_path / "x.pth") as stored, ZipFile(tmp_path / "y.pth", "w", ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(UserError, match="is compressed"):
        read_file(tmp_path / "y.pth")
    with ZipFile(tmp_path / "z.npz", "w", ZIP_DEFLATED) as packed, packed.open("a.npy", "w", force_zip64=True) as array:
        for _ in range(2):
            array.write(bytes(2**20))
    with pytest.raises(UserError, match="unpacks to"):
        read_file(tmp_path / "z.npz")


@pytest.mark.parametrize("content", [b"<html>404 not found</html>", bytes(range(256)) * 4, b"PK\x03\x04 no zip"])
def test_a_file_of_something_else_is_one_clear_line(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_file(tmp_path / "weights.pth")


def test_a_missing_file_and_one_without_a_state_dict_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_file(tmp_path / "weights.pth")
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match=r"tensor.pth holds no weights"):
        read_file(tmp_path / "tensor.pth")


@pytest.mark.parametrize("text", ["{", "[1, 2]", "\x00"])
def test_a_damaged_json_is_one_clear_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        read_json(tmp_path / "config.json")
