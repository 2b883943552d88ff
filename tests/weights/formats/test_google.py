"""timm reads these files too, in its own way: it is the reference."""

import numpy as np
import pytest
import timm
import torch

from tests.weights.parts import build
from vitmae.errors import UserError
from vitmae.weights.load import load_weights
from vitmae.weights.read import read_weights

WIDTH, HEADS, DEPTH, HIDDEN = 32, 2, 2, 128


def arrays(patch, rows, layout="vision_transformer", classes=10, stages=(), scan=False, pool="cls"):
    """A file's arrays with random values, in JAX's shapes."""
    drawn = np.random.default_rng(0)
    big_vision = layout == "big_vision"
    attention, mlp, norm = ("0", "0", "1") if big_vision else ("1", "3", "2")
    file = {}

    def put(name, *shape):
        file[name] = drawn.normal(size=shape).astype(np.float32)

    def dense(name, inputs, outputs):
        put(f"{name}/kernel", *inputs, *outputs)
        put(f"{name}/bias", *outputs)

    def layer_norm(name, *shape):
        put(f"{name}/scale", *shape)
        put(f"{name}/bias", *shape)

    def attend(name):
        for part in ("query", "key", "value"):
            dense(f"{name}/{part}", [WIDTH], [HEADS, WIDTH // HEADS])
        put(f"{name}/out/kernel", HEADS, WIDTH // HEADS, WIDTH)
        put(f"{name}/out/bias", WIDTH)

    def perceive(name):
        dense(f"{name}/Dense_0", [WIDTH], [HIDDEN])
        dense(f"{name}/Dense_1", [HIDDEN], [WIDTH])

    if pool == "cls":
        put("cls", 1, 1, WIDTH)
    dense("embedding", patch, [WIDTH])
    put("pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding", 1, rows, WIDTH)
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        layer_norm(f"{block}/LayerNorm_0", WIDTH)
        attend(f"{block}/MultiHeadDotProductAttention_{attention}")
        layer_norm(f"{block}/LayerNorm_{norm}", WIDTH)
        perceive(f"{block}/MlpBlock_{mlp}")
    layer_norm("Transformer/encoder_norm", WIDTH)
    dense("head", [WIDTH], [classes])
    if not big_vision:
        dense("pre_logits", [WIDTH], [WIDTH])
    if pool == "map":
        put("MAPHead_0/probe", 1, 1, WIDTH)
        attend("MAPHead_0/MultiHeadDotProductAttention_0")
        layer_norm("MAPHead_0/LayerNorm_0", WIDTH)
        perceive("MAPHead_0/MlpBlock_0")
    if stages:
        put("conv_root/kernel", 7, 7, 3, 64)
        layer_norm("gn_root", 1, 1, 1, 64)
    inputs = 64
    for stage, units in enumerate(stages, 1):
        middle = 64 * 2 ** (stage - 1)
        for unit in range(1, units + 1):
            at = f"block{stage}/unit{unit}/"
            for conv, size, width_in, width in (
                (1, 1, inputs, middle),
                (2, 3, middle, middle),
                (3, 1, middle, 4 * middle),
            ):
                put(f"{at}conv{conv}/kernel", size, size, width_in, width)
                layer_norm(f"{at}gn{conv}", 1, 1, 1, width)
            if unit == 1:
                put(f"{at}conv_proj/kernel", 1, 1, inputs, 4 * middle)
                layer_norm(f"{at}gn_proj", 1, 1, 1, 4 * middle)
            inputs = 4 * middle
    if scan:
        stacked = [name for name in file if "encoderblock_0/" in name]
        for name in stacked:
            file[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(
                [file.pop(name.replace("encoderblock_0", f"encoderblock_{i}")) for i in range(DEPTH)]
            )
    if big_vision:
        file = {f"params/{name}": array for name, array in file.items()}
    return file


def timms(path, name="vit_tiny_patch16_224", **settings):
    shape = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": DEPTH, "num_classes": 10}
    model = timm.create_model(name, **shape | settings)
    model.load_pretrained(str(path))
    return model.state_dict()


def ours_under_timms_names(source):
    return {name.removeprefix("backbone.vit."): tensor for name, tensor in source.state.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize(
    ("layout", "scan"), [("vision_transformer", False), ("big_vision", False), ("big_vision", True)]
)
def test_a_vit_is_read_as_timm_reads_it(tmp_path, layout, scan):
    np.savez(tmp_path / "vit.npz", **arrays((4, 4, 3), 37, layout, scan=scan))
    source = read_weights(str(tmp_path / "vit.npz"))
    assert_same(ours_under_timms_names(source), timms(tmp_path / "vit.npz", img_size=24, patch_size=4))
    if layout == "vision_transformer":
        assert source.unknown == ("pre_logits/kernel", "pre_logits/bias")


def test_attention_pooling_is_read_as_timm_reads_it(tmp_path):
    np.savez(tmp_path / "map.npz", **arrays((4, 4, 3), 36, "big_vision", pool="map"))
    source = read_weights(str(tmp_path / "map.npz"))
    theirs = timms(tmp_path / "map.npz", img_size=24, patch_size=4, global_pool="map", class_token=False)
    assert_same(ours_under_timms_names(source), theirs)


def test_a_hybrid_is_read_as_timm_reads_it(tmp_path):
    np.savez(tmp_path / "r26.npz", **arrays((1, 1, 2048), 5, stages=(2, 2, 2, 2)))
    source = read_weights(str(tmp_path / "r26.npz"))
    assert_same(ours_under_timms_names(source), timms(tmp_path / "r26.npz", "vit_small_r26_s32_224", img_size=64))


def test_a_hybrid_with_a_stem_alone_is_read_as_timm_reads_it(tmp_path):
    file = arrays((8, 8, 64), 5)
    stem = arrays((1, 1, 2048), 5, stages=(1,))
    file |= {name: stem[name] for name in ("conv_root/kernel", "gn_root/scale", "gn_root/bias")}
    np.savez(tmp_path / "r.npz", **file)
    source = read_weights(str(tmp_path / "r.npz"))
    assert_same(ours_under_timms_names(source), timms(tmp_path / "r.npz", "vit_tiny_r_s16_p8_224", img_size=64))


def test_a_file_fills_the_encoder_of_a_model(tmp_path):
    np.savez(tmp_path / "vit.npz", **arrays((4, 4, 3), 37))
    report = load_weights(build("mae", {"img_size": [24, 24]}), str(tmp_path / "vit.npz"))
    assert report.share("encoder", "renamed") == 1.0


def test_an_npz_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(UserError, match="holds no vision transformer"):
        read_weights(str(tmp_path / "other.npz"))
