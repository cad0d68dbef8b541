import argparse
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldmae.conversion.lightningdit import load_official_lightningdit, to_official_lightningdit
from ldmae.core.errors import UserError

from ..golden import GOLDEN, needs_golden
from ..tiny import tiny_transformer

tiny = functools.partial(tiny_transformer, std=0.2, in_channels=3, num_layers=2, num_classes=5)


def settings(model) -> dict:
    return {key: value for key, value in model.config.items() if not key.startswith("_")}


def written(path: Path, value) -> Path:
    torch.save(value, path)
    return path


@needs_golden
def test_official_checkpoint_gives_the_official_velocity():
    model = load_official_lightningdit(GOLDEN / "lightningdit_tiny.pt")
    golden = load_file(GOLDEN / "lightningdit_golden.safetensors")
    with torch.no_grad():
        output = model(golden["hidden_states"], golden["timestep"], golden["class_labels"]).sample
    assert (output - golden["output"]).abs().max() <= 2e-5 * golden["output"].abs().max().clamp_min(1)
    assert settings(model) == json.loads((GOLDEN / "lightningdit_config.json").read_text())
    assert not model.training


@needs_golden
def test_weights_go_to_ours_and_back_parameter_for_parameter():
    with torch.serialization.safe_globals([argparse.Namespace]):
        official = torch.load(GOLDEN / "lightningdit_tiny.pt", weights_only=True)["ema"]
    ours = to_official_lightningdit(load_official_lightningdit(GOLDEN / "lightningdit_tiny.pt"))
    assert set(ours) == set(official)
    for key, value in official.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rmsnorm": False},
        {"use_swiglu": False},
        {"qk_norm": False},
        {"patch_size": 2},
        {"class_dropout_prob": 0.0},
        {"num_classes": 1, "class_dropout_prob": 0.0},
        {"mlp_ratio": 3.0},
        {"mlp_ratio": 2.7, "use_swiglu": False},
    ],
)
def test_configuration_is_read_from_the_shapes(changes, tmp_path):
    model = tiny(**changes)
    path = written(tmp_path / "model.pt", to_official_lightningdit(model))
    loaded = load_official_lightningdit(path, num_classes=model.config.num_classes)
    assert settings(loaded) == settings(model) | {"mlp_ratio": loaded.config.mlp_ratio}
    assert loaded.config.mlp_ratio == pytest.approx(model.config.mlp_ratio, abs=0.05)
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in model.state_dict().items())


def test_wrapped_names_and_half_precision_are_understood(tmp_path):
    state = {f"module.{key}": value.bfloat16() for key, value in to_official_lightningdit(tiny()).items()}
    loaded = load_official_lightningdit(written(tmp_path / "model.pt", {"model": state}))
    assert loaded.dtype == torch.float32
    assert loaded.config.num_classes == 5


def test_averaged_weights_are_preferred(tmp_path):
    plain, average = to_official_lightningdit(tiny()), to_official_lightningdit(tiny())
    average["final_layer.linear.bias"] += 1
    path = written(tmp_path / "model.pt", {"model": plain, "ema": average, "opt": {}, "config": {}})
    loaded = load_official_lightningdit(path).state_dict()
    assert torch.equal(loaded["final_layer.linear.bias"], average["final_layer.linear.bias"])


def test_number_of_classes_comes_from_the_argument_then_the_file_then_the_rows(tmp_path):
    state = to_official_lightningdit(tiny(num_classes=6, class_dropout_prob=0.0))
    bare = written(tmp_path / "bare.pt", state)
    config = {"data": {"num_classes": 6}}
    told = written(tmp_path / "told.pt", {"model": state, "ema": state, "opt": {}, "config": config})
    assert (load_official_lightningdit(bare).null_class, load_official_lightningdit(told).null_class) == (
        5,
        None,
    )
    assert load_official_lightningdit(bare, num_classes=6).null_class is None
    assert load_official_lightningdit(told, num_classes=5).null_class == 5
    with pytest.raises(UserError, match=r"6 rows .* got num_classes=10"):
        load_official_lightningdit(bare, num_classes=10)


def test_heads_are_asked_for_only_where_no_shape_tells_them(tmp_path):
    path = written(tmp_path / "model.pt", to_official_lightningdit(tiny(use_rope=False, qk_norm=False)))
    with pytest.raises(UserError, match="give num_attention_heads"):
        load_official_lightningdit(path)
    assert load_official_lightningdit(path, num_attention_heads=2).config.attention_head_dim == 8
    for wrong in (3, 0, -2):
        with pytest.raises(UserError, match=f"num_attention_heads={wrong} does not divide the width 16"):
            load_official_lightningdit(path, num_attention_heads=wrong)
    rotary = written(tmp_path / "rotary.pt", to_official_lightningdit(tiny()))
    with pytest.raises(UserError, match="has 2 attention heads, got num_attention_heads=4"):
        load_official_lightningdit(rotary, num_attention_heads=4)


def test_another_layout_is_named_not_loaded_in_part(tmp_path):
    state = to_official_lightningdit(tiny())
    lacking = {key: value for key, value in state.items() if key != "blocks.1.attn.proj.weight"}
    with pytest.raises(UserError, match=r"lacks: blocks\.1\.attn\.proj\.weight"):
        load_official_lightningdit(written(tmp_path / "lacking.pt", lacking))
    beyond = {**state, "blocks.0.cross_attn.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"does not know: blocks\.0\.cross_attn\.weight"):
        load_official_lightningdit(written(tmp_path / "beyond.pt", beyond))
    unshifted = {**state, "blocks.0.adaLN_modulation.1.bias": torch.zeros(64)}
    with pytest.raises(UserError, match=r"adaLN_modulation\.1\.bias \(64,\) instead of \(96,\)"):
        load_official_lightningdit(written(tmp_path / "unshifted.pt", unshifted))
    turned = {**state, "feat_rope.freqs_sin": torch.zeros(16, 8)}
    with pytest.raises(UserError, match="feat_rope"):
        load_official_lightningdit(written(tmp_path / "turned.pt", turned))
    with pytest.raises(UserError, match=r"lacks .*x_embedder"):
        load_official_lightningdit(written(tmp_path / "other.pt", {"encoder.weight": torch.zeros(1)}))
