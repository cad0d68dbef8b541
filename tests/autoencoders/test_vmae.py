import itertools
import json

import pytest
import torch
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from safetensors.torch import load_file

from ldmae.autoencoders.objective import last_weight
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.core.errors import UserError
from ldmae.core.files import fingerprint_tensors
from ldmae.core.flops import count_autoencoder_flops
from ldmae.core.positions import sincos_2d

from ..golden import GOLDEN, needs_golden
from ..tiny import tiny_vmae

TINY = {"latent_channels": 3, "encoder_num_hidden_layers": 2}
TINY |= {"decoder_hidden_size": 24, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 3}
VISIBLE = torch.tensor([[0, 3, 7, 10], [1, 2, 8, 15]])


def tiny(**changes) -> AutoencoderVMAE:
    return tiny_vmae(**(TINY | changes))


def images(batch=2, height=16, width=16) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---- the size the paper gives


def test_default_model_has_the_papers_parameter_count():
    with torch.device("meta"):
        model = AutoencoderVMAE()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with_tables = sum(t.numel() for t in model.state_dict().values())
    assert round(trainable / 1e6, 2) == 10.80
    assert round(with_tables / 1e6, 2) == 11.19
    assert not any("pos_embed" in name for name, _ in model.named_parameters())


def test_linear_layers_start_xavier_uniform_with_zero_bias():
    model = tiny(use_mask_token=True)
    for layer in (model.blocks[0].mlp.fc1, model.to_latent, model.decoder_pred.linear_pred):
        bound = (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    patch = model.patch_embed.proj
    bound = (6 / (16 + 48)) ** 0.5
    assert 0.8 * bound < patch.weight.abs().max() <= bound
    assert not patch.bias.any()
    assert 0.01 < model.mask_token.std() < 0.03


# ---- shapes and outputs


def test_patches_are_flattened_as_rows_columns_channels():
    head, x = tiny(smooth_output=False).decoder_pred, torch.zeros(1, 3, 8, 12)
    head.linear_pred = torch.nn.Identity()
    patches = torch.zeros(1, 6, 48)
    patches[0, 4] = torch.arange(48.0)
    x[0, :, 4:8, 4:8] = torch.arange(48.0).view(4, 4, 3).permute(2, 0, 1)
    assert torch.equal(head(patches, (2, 3)), x)


def test_encode_and_decode_return_diffusers_outputs():
    model, x = tiny(), images()
    output = model.encode(x)
    assert isinstance(output, AutoencoderKLOutput)
    assert output.latent_dist.mode().shape == (2, 3, 4, 4)
    (posterior,) = model.encode(x, return_dict=False)
    torch.testing.assert_close(posterior.mean, output.latent_dist.mean)
    decoded = model.decode(posterior.mean)
    assert isinstance(decoded, DecoderOutput)
    assert decoded.sample.shape == x.shape
    (sample,) = model.decode(posterior.mean, return_dict=False, generator=None)
    torch.testing.assert_close(sample, decoded.sample)


def test_forward_takes_the_mean_or_a_seeded_draw():
    model, x = tiny(), images()
    by_hand = model.decode(model.encode(x).latent_dist.mode()).sample
    torch.testing.assert_close(model(x).sample, by_hand)
    torch.testing.assert_close(model(x, return_dict=False)[0], by_hand)

    def draw(seed):
        return model(x, sample_posterior=True, generator=torch.Generator().manual_seed(seed)).sample

    torch.testing.assert_close(draw(0), draw(0), rtol=0, atol=0)
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(draw(0), by_hand)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    assert model(x, sample_posterior=True, generator=generators).sample.shape == x.shape


def test_log_variance_is_clamped():
    model = tiny()
    with torch.no_grad():
        model.to_latent.bias[3:] = torch.tensor([-100.0, 0.0, 100.0])
    logvar = model.encode(images()).latent_dist.logvar
    assert logvar[:, 0].max() == -30
    assert logvar[:, 2].min() == 20


def test_posterior_divergences_match_torch_distributions():
    from torch.distributions import Normal, kl_divergence

    model = tiny(use_mask_token=True)
    for visible in (None, VISIBLE):
        p = model.encode(images(), visible_indices=visible).latent_dist
        q = model.encode(images().flip(3), visible_indices=visible).latent_dist
        mine, other = Normal(p.mean, p.std), Normal(q.mean, q.std)
        standard = Normal(torch.zeros_like(p.mean), torch.ones_like(p.mean))
        torch.testing.assert_close(p.kl(), kl_divergence(mine, standard).flatten(1).sum(1))
        torch.testing.assert_close(p.kl(q), kl_divergence(mine, other).flatten(1).sum(1))
        torch.testing.assert_close(p.nll(q.mean), -mine.log_prob(q.mean).flatten(1).sum(1))


# ---- masking


def test_masked_patches_cannot_influence_visible_latents():
    model, x = tiny(use_mask_token=True), images()
    hidden = torch.ones(2, 16, dtype=torch.bool).scatter(1, VISIBLE, False)
    pixels = hidden.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    other = torch.where(pixels, x + 5, x)
    first = model.encode(x, visible_indices=VISIBLE).latent_dist
    second = model.encode(other, visible_indices=VISIBLE).latent_dist
    assert first.mean.shape == (2, 3, 4)
    torch.testing.assert_close(first.parameters, second.parameters, rtol=0, atol=0)
    changed = model.encode(x + 5, visible_indices=VISIBLE).latent_dist
    assert not torch.equal(first.parameters, changed.parameters)


def test_masking_makes_the_encoder_cheaper():
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny(use_mask_token=True)

    def cost(visible):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.encode(images(), visible_indices=visible)
        return counter.get_total_flops()

    assert cost(VISIBLE) < 0.4 * cost(None)


def test_seeing_every_patch_equals_no_mask():
    model, x = tiny(use_mask_token=True), images(2, 16, 24)
    everything = torch.arange(24).expand(2, -1)
    whole = model.encode(x).latent_dist.mean
    seen = model.encode(x, visible_indices=everything).latent_dist.mean
    torch.testing.assert_close(seen.unflatten(2, (4, 6)), whole)
    decoded = model.decode(seen, visible_indices=everything, grid=(4, 6)).sample
    torch.testing.assert_close(decoded, model.decode(whole).sample)


def test_decoding_depends_on_where_the_visible_latents_stand():
    model = tiny(use_mask_token=True)
    z = torch.randn(2, 3, 4)
    here = model.decode(z, visible_indices=VISIBLE).sample
    there = model.decode(z, visible_indices=15 - VISIBLE).sample
    assert here.shape == (2, 3, 16, 16)
    assert not torch.allclose(here, there)
    order = torch.tensor([2, 0, 3, 1])
    same = model.decode(z[:, :, order], visible_indices=VISIBLE[:, order]).sample
    torch.testing.assert_close(same, here)


def test_decoding_a_part_without_mask_token_is_a_clear_error():
    with pytest.raises(UserError, match="use_mask_token=True"):
        tiny().decode(torch.zeros(2, 3, 4), visible_indices=VISIBLE)


# ---- sizes and positions


@pytest.mark.parametrize("size", [(16, 32), (8, 4), (24, 24), (20, 12)])
def test_any_multiple_of_the_patch_size_encodes_and_decodes(size):
    model, x = tiny(), images(1, *size)
    z = model.encode(x).latent_dist.mode()
    assert z.shape == (1, 3, size[0] // 4, size[1] // 4)
    assert model.decode(z).sample.shape == x.shape


def test_sine_cosine_positions_are_computed_for_another_grid():
    small, large = tiny(), tiny(sample_size=32)
    weights = {k: v for k, v in small.state_dict().items() if "pos_embed" not in k}
    large.load_state_dict(weights, strict=False)
    x = images(2, 32, 32)
    torch.testing.assert_close(small.encode(x).latent_dist.mean, large.encode(x).latent_dist.mean)
    torch.testing.assert_close(small(x).sample, large(x).sample)
    torch.testing.assert_close(small._positions(small.pos_embed, 3, 5)[0], sincos_2d(16, 3, 5))


def test_other_positions_are_resampled_bilinearly():
    model = tiny()
    ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None].expand(1, 16, 16)  # the row's number
    model.load_state_dict({**model.state_dict(), "pos_embed": ramp})
    found = model._positions(model.pos_embed, 8, 2)[0, :, 0].reshape(8, 2)
    rows = (torch.arange(8) + 0.5) / 2 - 0.5
    torch.testing.assert_close(found, rows.clamp(0, 3)[:, None].expand(8, 2))
    torch.testing.assert_close(model._positions(model.pos_embed, 4, 4), ramp)


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 30)])
def test_image_size_that_is_no_multiple_of_the_patch_size_is_refused(height, width):
    with pytest.raises(UserError, match=f"multiples of patch_size=4, got {height}x{width}; resize"):
        tiny().encode(images(1, height, width))


@pytest.mark.parametrize("shape", [(1, 3, 16), (1, 5, 4, 4), (3, 4, 4)])
def test_latents_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"latents are \(B, 3, h, w\) here, as encode gives them, got \("):
        tiny().decode(torch.zeros(shape))
    with pytest.raises(UserError, match=r"latents are \(B, 3, V\) here"):
        tiny().decode(torch.zeros(2, 5, 4), visible_indices=VISIBLE)


def test_images_of_other_channels_are_refused():
    with pytest.raises(UserError, match=r"\(B, 3, H, W\), got \(1, 1, 16, 16\)"):
        tiny().encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(UserError, match=r"floats in \[-1, 1\], got torch\.uint8"):
        tiny().encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_num_attention_heads": 3}, "encoder_hidden_size=.* must be a multiple"),
        ({"decoder_num_attention_heads": 5}, "decoder_hidden_size=.* must be a multiple"),
        ({"decoder_hidden_size": 18, "decoder_num_attention_heads": 2}, "multiple of 4"),
        ({"sample_size": 18}, "sample_size must be a multiple of patch_size=4, got 18; take 16"),
        ({"latent_channels": 0}, "latent_channels must be at least 1, got 0"),
        ({"patch_size": -8}, "patch_size must be at least 1, got -8"),
        ({"latents_mean": [0.0]}, "latents_mean must hold latent_channels=3 numbers, got 1"),
        ({"latents_mean": [0.0] * 3}, "give latents_mean and latents_std together"),
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0, 0.0, 1.0]}, "without a zero in latents_std"),
        ({"hidden_act": "nonsense"}, "hidden_act"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
        ({"head_features": 0}, "head_features must be at least 1"),
        ({"head_features": 5, "smooth_output": False}, "head_features=5 needs smooth_output=True"),
    ],
)
def test_constructor_refuses_sizes_that_do_not_go_together(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


# ---- saving and loading


def test_config_round_trip(tmp_path):
    model = tiny(latents_mean=[0.1, 0.2, 0.3], latents_std=[1.0, 2.0, 3.0], scaling_factor=0.5)
    model.save_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["_class_name"] == "AutoencoderVMAE"
    again = AutoencoderVMAE.from_config(AutoencoderVMAE.load_config(tmp_path))
    assert again.config["latents_std"] == [1.0, 2.0, 3.0]
    ours = {k: v for k, v in model.config.items() if not k.startswith("_")}
    assert ours == {k: v for k, v in again.config.items() if not k.startswith("_")}


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize(
    "save", [{}, {"max_shard_size": "20KB"}, {"variant": "fp16"}], ids=["plain", "sharded", "variant"]
)
def test_saved_model_loads_bitwise(tmp_path, save, low_cpu_mem_usage):
    model = tiny(use_mask_token=True)
    stretched = torch.randn(1, 16, 16)
    model.load_state_dict({**model.state_dict(), "pos_embed": stretched})
    model.save_pretrained(tmp_path, **save)
    files = {path.name for path in tmp_path.iterdir()}
    assert ("diffusion_pytorch_model.safetensors.index.json" in files) == ("max_shard_size" in save)
    load = {"variant": save["variant"]} if "variant" in save else {}
    again = AutoencoderVMAE.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, **load)
    for (name, ours), (other_name, theirs) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    x = images(2, 16, 24)  # another grid: the stretched table must be recognised after loading
    torch.testing.assert_close(again(x).sample, model(x).sample, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_full_precision(tmp_path, dtype):
    model = tiny(use_mask_token=True)
    model.save_pretrained(tmp_path)
    half = AutoencoderVMAE.from_pretrained(tmp_path, torch_dtype=dtype)
    assert half.dtype == dtype
    assert half.pos_embed.dtype == dtype
    cast = tiny(use_mask_token=True).to(dtype)
    for height, width in ((16, 16), (16, 24)):
        x = images(2, height, width)
        full = model(x).sample
        for other in (half, cast):
            sample = other(x.to(dtype)).sample
            assert sample.dtype == dtype
            torch.testing.assert_close(sample.float(), full, rtol=0, atol=0.05)
    z = cast.encode(images().to(dtype), visible_indices=VISIBLE).latent_dist.mean
    assert cast.decode(z, visible_indices=VISIBLE).sample.dtype == dtype


def test_autocast_runs_masked_and_whole():
    model = tiny(use_mask_token=True)
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encode(images(), visible_indices=VISIBLE).latent_dist.mean
        masked = model.decode(z, visible_indices=VISIBLE).sample
        whole = model(images()).sample
    assert masked.isfinite().all()
    torch.testing.assert_close(whole.float(), model(images()).sample, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_posteriors_noise_reaches_the_decoder_under_autocast(dtype):
    model = tiny(use_mask_token=True)
    with torch.no_grad():
        model.to_latent.bias[:3] = 1.5  # beside it bfloat16's numbers lie 8e-3 apart
    noise = 1e-3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    tokens = []
    model.decoder_embed.register_forward_hook(lambda *call: tokens.append(call[2].detach().float()))
    with torch.no_grad():
        with torch.autocast("cpu", dtype):
            mean = model.encode(images()).latent_dist.mean
            z = mean + noise.to(mean.dtype)
            assert (z == mean).float().mean() < 0.01
            model.decode(z), model.decode(mean)
        layers = model.decoder_embed.weight @ model.from_latent.weight
    expected = noise.flatten(2).transpose(1, 2) @ layers.T
    torch.testing.assert_close(tokens[0] - tokens[1], expected, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_runs_under_autocast_too(dtype):
    model = tiny(use_mask_token=True).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        z = model.encode(images().to(dtype), visible_indices=VISIBLE).latent_dist.mean
        assert z.dtype == dtype
        assert model.decode(z, visible_indices=VISIBLE).sample.isfinite().all()


# ---- what diffusers offers


def test_switches_by_place_are_diffusers():
    model, x = tiny(), images()
    (posterior,) = model.encode(x, False)
    (sample,) = model.decode(posterior.mean, False, torch.Generator())
    torch.testing.assert_close(sample, model(x).sample)


def test_tiling_is_refused_with_what_helps_instead():
    model = tiny()
    with pytest.raises(NotImplementedError, match=r"no tiling.*enable_slicing\(\)"):
        model.enable_tiling()
    model.disable_tiling()
    assert model(images()).sample.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("kind", [{"offload_type": "leaf_level"}, {"num_blocks_per_group": 1}])
def test_group_offloading_is_refused_before_anything_moves(kind):
    model = tiny()
    with pytest.raises(ValueError, match="AutoencoderVMAE does not support group offloading"):
        model.enable_group_offload(onload_device=torch.device("cpu"), **kind)
    assert not any(hasattr(module, "_diffusers_hook") for module in model.modules())


def test_slicing_changes_nothing():
    model, x = tiny(use_mask_token=True), images(3)
    visible = torch.stack([torch.randperm(16)[:5].sort().values for _ in range(3)])

    def outputs():
        z = model.encode(x, visible_indices=visible).latent_dist.mean
        return model(x).sample, model.decode(z, visible_indices=visible).sample

    assert model.use_slicing is False
    whole = outputs()
    model.enable_slicing()
    assert model.use_slicing
    for sliced, unsliced in zip(outputs(), whole, strict=True):
        torch.testing.assert_close(sliced, unsliced)
    model.disable_slicing()
    assert model.use_slicing is False


@pytest.mark.parametrize("autocast", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(autocast):
    plain, checkpointed = tiny(), tiny()
    checkpointed.enable_gradient_checkpointing()
    assert checkpointed.is_gradient_checkpointing
    for model in (plain.train(), checkpointed.train()):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(images()).sample.float().square().mean()
        loss.backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    checkpointed.disable_gradient_checkpointing()
    assert not checkpointed.is_gradient_checkpointing


def test_attributes_that_diffusers_reads_are_there():
    import ldmae.autoencoders.vmae as module

    assert AutoencoderVMAE._supports_gradient_checkpointing
    assert AutoencoderVMAE._no_split_modules == AutoencoderVMAE._repeated_blocks == ["VMAEBlock"]
    assert module.ModelMixin in AutoencoderVMAE.__mro__
    assert AutoencoderVMAE.__module__ == "ldmae.autoencoders.vmae"


def test_whole_model_compiles_as_one_graph():
    torch._dynamo.reset()
    model = tiny(use_mask_token=True, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1, sample_size=8)
    compiled = {
        name: torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
        for name, function in (("forward", model), ("masked", _masked_pass(model)), ("encode", model.encode))
    }
    x, visible = images(2, 8, 12), torch.tensor([[0, 2, 5], [1, 3, 4]])  # another grid than the stored one
    with torch.no_grad():
        torch.testing.assert_close(compiled["forward"](x).sample, model(x).sample)
        torch.testing.assert_close(compiled["masked"](x, visible), _masked_pass(model)(x, visible))
        latent_dist = compiled["encode"](x).latent_dist
        torch.testing.assert_close(latent_dist.mean, model.encode(x).latent_dist.mean)
        decode = torch.compile(model.decode, backend="aot_eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(decode(latent_dist.mean).sample, model(x).sample)
        with torch.autocast("cpu", torch.bfloat16):
            half = compiled["masked"](x, visible)
            torch.testing.assert_close(half, _masked_pass(model)(x, visible), rtol=0, atol=0.02)
    torch._dynamo.reset()


def _masked_pass(model):
    def run(x, visible):
        z = model.encode(x, visible_indices=visible).latent_dist.mean
        grid = (x.shape[2] // 4, x.shape[3] // 4)
        return model.decode(z, visible_indices=visible, grid=grid).sample

    return run


# ---- what trainers ask for


def test_frozen_encoder_leaves_the_decoder_to_train():
    model = tiny(use_mask_token=True)
    model.freeze_encoder()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"from_latent", "decoder_embed", "decoder_blocks", "decoder_norm", "decoder_pred"}
    assert not any(p.requires_grad for p in model.encoder_parameters())


def test_encoder_fingerprint_tells_encoders_apart_and_ignores_the_decoder():
    model = tiny()
    before = fingerprint_tensors(model.encoder_state())
    with torch.no_grad():
        for parameter in model.decoder_blocks.parameters():
            parameter.add_(1)
    assert fingerprint_tensors(model.encoder_state()) == before
    larger = tiny(sample_size=32)
    larger.load_state_dict({**larger.state_dict(), **model.encoder_state()})
    assert fingerprint_tensors(larger.encoder_state()) == before
    with torch.no_grad():
        model.pos_embed.add_(0.1)
    assert fingerprint_tensors(model.encoder_state()) != before
    with torch.no_grad():
        larger.to_latent.bias[0] += 1e-3
    assert fingerprint_tensors(larger.encoder_state()) != before


# ---- the official code's numbers


@needs_golden
def test_model_computes_what_the_official_code_computes():
    from ldmae.conversion import load_official_vmae

    reference = load_file(GOLDEN / "vmae_golden.safetensors")
    model = load_official_vmae(GOLDEN / "vmae_tiny.pth")
    with torch.no_grad():
        posterior = model.encode(reference["image"]).latent_dist
        found = {
            "mean": posterior.mean,
            "logvar": posterior.logvar,
            "posterior_sample": posterior.mean + posterior.std * reference["noise"],
            "reconstruction": model(reference["image"]).sample,
            "decoded": model.decode(reference["latent"]).sample,
        }
    for name, tensor in found.items():
        tolerance = 2e-5 * max(1, reference[name].abs().max().item())
        torch.testing.assert_close(tensor, reference[name], rtol=0, atol=tolerance, msg=name)


def test_every_parameter_of_a_masked_model_gets_a_gradient():
    model = tiny(use_mask_token=True).train()
    posterior = model.encode(images(), visible_indices=VISIBLE).latent_dist
    z = posterior.sample(torch.Generator().manual_seed(0))
    model.decode(z, visible_indices=VISIBLE).sample.square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert len(list(itertools.chain(model.encoder_parameters()))) < len(list(model.parameters()))


# ---- the wider pixel head


def test_a_wider_head_convolves_features_before_the_image():
    model, tokens = tiny(head_features=5), torch.randn(2, 16, 24)
    head = model.decoder_pred
    cells = "b (h w) (p q c) -> b c (h p) (w q)"
    features = rearrange(head.linear_pred(tokens), cells, h=4, w=4, p=4, q=4)  # (2, 5, 16, 16)
    expected = head.conv_smoother(torch.nn.functional.gelu(head.conv_features(features)))
    torch.testing.assert_close(head(tokens, (4, 4)), expected)
    assert last_weight(model) is head.conv_smoother.weight
    plain = tiny(smooth_output=False)
    assert last_weight(plain) is plain.decoder_pred.linear_pred.weight
    assert model(images()).sample.shape == (2, 3, 16, 16)


def test_a_wider_head_is_in_the_config_and_costs_little(tmp_path):
    model = tiny(head_features=5)
    model.save_pretrained(tmp_path)
    again = AutoencoderVMAE.from_pretrained(tmp_path)
    assert again.config["head_features"] == 5
    torch.testing.assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert tiny().state_dict().keys() == tiny(head_features=None).state_dict().keys()
    with torch.device("meta"):
        plain, wide = (count_autoencoder_flops(AutoencoderVMAE(head_features=k), 256) for k in (None, 16))
    assert wide.encode == plain.encode
    # linear 192 → 64 · 16 in place of 64 · 3 a token, 16 → 16 → 3 in place of 3 → 3 a pixel
    more = 2 * (1024 * 192 * 64 * 13 + 65536 * 9 * (16 * 16 + 16 * 3 - 3 * 3))
    assert wide.decode - plain.decode == more
    assert more < 0.05 * plain.decode
