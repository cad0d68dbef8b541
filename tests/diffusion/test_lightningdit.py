import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ldmae.core.errors import UserError
from ldmae.core.positions import sincos_2d
from ldmae.diffusion.lightningdit import (
    LightningDiTTransformer2DModel,
    RMSNorm,
    rotary_tables,
)

from ..golden import GOLDEN, needs_golden
from ..tiny import tiny_transformer

TINY = {"in_channels": 3, "num_layers": 2, "num_classes": 5}


tiny = functools.partial(tiny_transformer, std=0.2, **TINY)  # every weight matters


def inputs(batch=2, channels=3, height=4, width=4):
    source = torch.Generator().manual_seed(1)
    hidden_states = torch.randn(batch, channels, height, width, generator=source)
    return hidden_states, torch.linspace(0.1, 0.9, batch), torch.arange(batch) % 5


def run(model, *args) -> torch.Tensor:
    with torch.no_grad():
        return model(*args).sample


# ---- against references


@needs_golden
def test_timestep_embedding_matches_golden():
    golden = load_file(GOLDEN / "lightningdit_golden.safetensors")
    embedder = tiny().t_embedder
    embedder.mlp = torch.nn.Identity()
    embedded = embedder(golden["timestep"], torch.float32)
    torch.testing.assert_close(embedded, golden["timestep_embedding"], rtol=0, atol=2e-6)


@needs_golden
def test_rotary_tables_match_golden():
    golden = load_file(GOLDEN / "lightningdit_golden.safetensors")
    cos, sin = rotary_tables(16, 4, 4)
    torch.testing.assert_close(cos, golden["rope_cos"], rtol=0, atol=2e-6)
    torch.testing.assert_close(sin, golden["rope_sin"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_matches_torch(dtype):
    norm, x = RMSNorm(24).to(dtype), torch.randn(3, 5, 24, dtype=dtype)
    torch.nn.init.normal_(norm.weight)
    expected = F.rms_norm(x.float(), (24,), norm.weight.float(), 1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(norm(x).float(), expected, rtol=tolerance, atol=tolerance)


def test_rotary_attention_depends_on_relative_places_only():
    from ldmae.diffusion.lightningdit import _rotate, _signed

    cos, sin = rotary_tables(8, 6, 5)
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (_rotate(x.expand(30, 8), cos, _signed(sin)).view(6, 5, 8) for x in (q, k))
    near, far = turned_q[0, 0] @ turned_k[2, 1], turned_q[3, 2] @ turned_k[5, 3]
    torch.testing.assert_close(near, far)
    assert not torch.allclose(near, turned_q[0, 0] @ turned_k[1, 2])  # rows and columns are told apart


def test_sizes_of_b1_at_256_pixels_are_the_official_ones():
    with torch.device("meta"):
        model = LightningDiTTransformer2DModel()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes["pos_embed"] == [1, 1024, 768]
    assert shapes["y_embedder.embedding_table.weight"] == [1001, 768]
    assert shapes["blocks.11.mlp.w12.weight"] == [4096, 768]
    assert shapes["blocks.0.mlp.w3.weight"] == [768, 2048]
    assert shapes["blocks.0.adaLN_modulation.1.weight"] == [4608, 768]
    assert shapes["final_layer.adaLN_modulation.1.weight"] == [1536, 768]
    assert model.num_parameters() == 130_336_528


# ---- behaviour


def test_fresh_model_predicts_zero():
    model = tiny_transformer(**TINY)
    assert run(model, *inputs()).abs().max() == 0


def test_label_std_changes_the_start_of_the_class_embeddings_and_nothing_else():
    models = []
    for changes in ({}, {"label_std": 0.5}):
        models.append(tiny_transformer(**{**TINY, "num_classes": 400, **changes}))
    assert models[0].config == models[1].config  # a start value is not stored
    usual, wide = (model.state_dict() for model in models)
    name = "y_embedder.embedding_table.weight"
    assert usual[name].std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(wide[name], usual[name] * 25)
    assert all(torch.equal(wide[key], usual[key]) for key in usual if key != name)


def test_return_dict_false_gives_a_tuple():
    model = tiny()
    assert torch.equal(model(*inputs(), return_dict=False)[0], model(*inputs()).sample)


def test_single_time_stands_for_the_whole_batch():
    model, (x, _, labels) = tiny(), inputs()
    expected = run(model, x, torch.tensor([0.3, 0.3]), labels)
    assert torch.equal(run(model, x, 0.3, labels), expected)
    assert torch.equal(run(model, x, torch.tensor(0.3), labels), expected)
    assert torch.equal(run(model, x, torch.tensor([0.3]), labels), expected)


def test_label_time_and_latents_all_matter():
    model, (x, t, labels) = tiny(), inputs()
    output = run(model, x, t, labels)
    for other in [(x + 0.1, t, labels), (x, t + 0.05, labels), (x, t, labels + 1)]:
        assert not torch.allclose(run(model, *other), output, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rmsnorm": False},
        {"use_swiglu": False},
        {"use_rope": False},
        {"qk_norm": False},
        {"patch_size": 2},
        {"use_rmsnorm": False, "use_swiglu": False, "use_rope": False, "qk_norm": False},
    ],
)
def test_variants_run_and_train(changes):
    model = tiny(**changes)
    output = model(*inputs()).sample
    assert output.shape == (2, 3, 4, 4)
    output.square().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []


def test_keys_of_variants_are_the_official_ones():
    plain = tiny(use_rmsnorm=False, use_swiglu=False, qk_norm=False).state_dict()
    assert not [key for key in plain if "norm" in key]
    assert {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"} <= set(plain)
    layernorm = tiny(use_rmsnorm=False).state_dict()
    assert {"blocks.0.attn.q_norm.weight", "blocks.0.attn.q_norm.bias"} <= set(layernorm)
    assert "blocks.0.norm1.weight" not in layernorm


def test_patches_are_put_back_in_place_with_channels_last():
    model = tiny_transformer(**{**TINY, "patch_size": 2})
    torch.nn.init.normal_(bias := model.final_layer.linear.bias)
    patch = bias.view(2, 2, 3).permute(2, 0, 1)  # order (p, p, C), as in DiT
    expected = patch.repeat(1, 2, 2).expand(2, 3, 4, 4)
    torch.testing.assert_close(run(model, *inputs()), expected)


@pytest.mark.parametrize(("height", "width"), [(4, 8), (6, 2), (8, 8)])
def test_other_grids_give_what_a_model_of_that_size_gives(height, width):
    model, (x, t, labels) = tiny(), inputs(height=height, width=width)
    output = run(model, x, t, labels)
    assert output.shape == x.shape
    if height == width:
        larger = tiny(sample_size=height)
        larger.load_state_dict({**model.state_dict(), "pos_embed": larger.pos_embed})
        torch.testing.assert_close(output, run(larger, x, t, labels))


def test_positions_of_another_grid_are_computed_where_the_stored_ones_are_sine_cosine():
    model = tiny()
    torch.testing.assert_close(model._positions(3, 5)[0], sincos_2d(16, 3, 5))
    halved = copy.deepcopy(model).to(torch.bfloat16)
    torch.testing.assert_close(halved._positions(3, 5)[0], sincos_2d(16, 3, 5, dtype=torch.bfloat16))


def test_positions_of_another_grid_are_stretched_where_the_stored_ones_are_not():
    model = tiny()
    model.pos_embed += 0.1 * torch.randn_like(model.pos_embed)
    square = model.pos_embed.view(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(square, (6, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model._positions(6, 5), expected.flatten(2).transpose(1, 2))


# ---- diffusers' and torch's machinery


@pytest.mark.parametrize("size", [(4, 4), (6, 4)])
def test_compiles_without_graph_breaks(size):
    model, args = tiny(), inputs(height=size[0], width=size[1])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, *args), run(model, *args))


def test_gradient_checkpointing_leaves_gradients_unchanged():
    gradients = []
    for checkpointing in (False, True):
        model = tiny().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing == checkpointing
        model(*inputs()).sample.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("changes", [{}, {"use_rmsnorm": False}])
def test_half_precision_stays_half_and_close(dtype, changes):
    model, (x, t, labels) = tiny(**changes), inputs()
    output = run(copy.deepcopy(model).to(dtype), x.to(dtype), t, labels)
    assert output.dtype == dtype
    expected = run(model, x, t, labels)
    assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("changes", [{}, {"use_rmsnorm": False}])
def test_autocast_trains(changes):
    model = tiny(**changes)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs()).sample
    output.float().square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_saved_model_loads_as_it_was(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    model.save_pretrained(tmp_path / "variant", variant="fp16")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    expected = run(model, *inputs())
    for name, options in [("whole", {}), ("sharded", {}), ("variant", {"variant": "fp16"})]:
        for low_memory in (True, False):
            loaded = LightningDiTTransformer2DModel.from_pretrained(
                tmp_path / name, low_cpu_mem_usage=low_memory, **options
            )
            assert loaded.null_class == 5
            assert torch.equal(run(loaded, *inputs()), expected), name
    half = LightningDiTTransformer2DModel.from_pretrained(tmp_path / "whole", torch_dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}


# ---- classes and sizes


def test_null_class_is_the_row_after_the_classes_or_none():
    assert tiny().null_class == 5
    assert tiny().state_dict()["y_embedder.embedding_table.weight"].shape == (6, 16)
    assert tiny(class_dropout_prob=0.0).null_class is None
    assert tiny(class_dropout_prob=0.0).state_dict()["y_embedder.embedding_table.weight"].shape == (5, 16)
    assert tiny(num_classes=1).null_class is None
    assert tiny(num_classes=1).state_dict()["y_embedder.embedding_table.weight"].shape == (1, 16)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_size": 3}, "patch_size"),
        ({"attention_head_dim": 6}, "attention_head_dim"),
        ({"attention_head_dim": 3, "use_rope": False}, "attention_head_dim"),
        ({"num_classes": 0}, "num_classes"),
        ({"class_dropout_prob": 1.0}, "class_dropout_prob"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(UserError, match=named):
        tiny_transformer(**{**TINY, **changes})


def test_latents_that_do_not_fit_the_patch_size_are_refused():
    with pytest.raises(UserError, match="multiples of patch_size=2, got 5x4"):
        tiny(patch_size=2)(*inputs(height=5))
