import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.conversion import load_official_vmae
from ldmae.conversion.checkpoints import read_official_checkpoint
from ldmae.conversion.vmae import to_official_checkpoint, to_official_vmae
from ldmae.core.errors import UserError

from ..golden import GOLDEN, needs_golden
from ..tiny import tiny_vmae


def model(**changes) -> AutoencoderVMAE:
    shape = {"latent_channels": 3, "encoder_hidden_size": 32, "encoder_num_hidden_layers": 2}
    return tiny_vmae(**(shape | {"decoder_num_attention_heads": 1, "mlp_ratio": 2.0} | changes))


def test_file_of_ours_comes_back_with_what_the_official_layout_has_no_place_for(tmp_path):
    ours = model(
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=2,
        hidden_act="silu",
        mlp_ratio=2.7,  # from which both hidden widths are rounded
        decoder_hidden_size=48,
        latents_mean=[0.5, 1.0, -1.0],
        latents_std=[1.0, 2.0, 3.0],
        scaling_factor=0.5,
    )
    torch.save(to_official_checkpoint(ours), tmp_path / "vmae.pth")
    again = load_official_vmae(tmp_path / "vmae.pth")
    assert all(again.config[key] == value for key, value in ours.config.items() if not key.startswith("_"))
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(again(x, sample_posterior=False).sample, ours(x, sample_posterior=False).sample)
    other = load_official_vmae(tmp_path / "vmae.pth", encoder_num_attention_heads=8)
    assert other.config["encoder_num_attention_heads"] == 8


def write(path, state, **entries) -> Path:
    torch.save({"model": state, "epoch": 9, "args": argparse.Namespace(input_size=16), **entries}, path)
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_mask_token": True}, {"smooth_output": False}, {"out_channels": 1, "in_channels": 1}],
    ids=["plain", "mask token", "without smoother", "grey"],
)
def test_round_trip_keeps_sizes_and_weights(tmp_path, changes):
    ours = model(**changes)
    again = load_official_vmae(write(tmp_path / "vmae.pth", to_official_vmae(ours)))
    expected = {k: v for k, v in ours.config.items() if not k.startswith("_")}
    assert {k: v for k, v in again.config.items() if not k.startswith("_")} == expected
    assert list(again.state_dict()) == list(ours.state_dict())
    torch.testing.assert_close(dict(again.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)
    assert not again.training
    assert all(p.requires_grad for p in again.parameters())
    assert not any(tensor.is_meta for tensor in again.state_dict().values())
    again.save_pretrained(tmp_path / "saved")
    assert AutoencoderVMAE.from_pretrained(tmp_path / "saved").config["sample_size"] == 16


def test_without_smoother_the_official_head_has_its_short_name():
    state = to_official_vmae(model(smooth_output=False))
    assert "decoder_pred.weight" in state
    assert not any("linear_pred" in key for key in state)


def test_a_wider_head_has_no_place_in_the_official_layout():
    with pytest.raises(UserError, match="no place for head_features=5; keep this model in diffusers' format"):
        to_official_vmae(model(head_features=5))


def test_loss_network_wrappers_and_bare_state_dicts_are_no_hindrance(tmp_path):
    ours = model()
    state = to_official_vmae(ours)
    state["perceptual_loss.net.slice1.0.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save({"module." + key: tensor for key, tensor in state.items()}, tmp_path / "bare.pth")
    again = load_official_vmae(tmp_path / "bare.pth")
    torch.testing.assert_close(dict(again.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


def test_latent_statistics_go_into_the_config(tmp_path):
    path = write(tmp_path / "vmae.pth", to_official_vmae(model()))
    stats = {"mean": torch.tensor([1.0, 2, 3]).reshape(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    torch.save(stats, tmp_path / "latents_stats.pt")
    again = load_official_vmae(path, latents_stats=tmp_path / "latents_stats.pt")
    assert again.config["latents_mean"] == [1.0, 2.0, 3.0]
    assert again.config["latents_std"] == [1.0, 1.0, 1.0]
    torch.save({"mean": torch.ones(1, 4, 1, 1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"expected 'mean' of shape \(1, 3, 1, 1\), got \(1, 4, 1, 1\)"):
        load_official_vmae(path, latents_stats=tmp_path / "other.pt")
    for broken in ({"mean": torch.full((1, 3, 1, 1), torch.nan)}, {"std": torch.zeros(1, 3, 1, 1)}):
        torch.save(stats | broken, tmp_path / "broken.pt")
        with pytest.raises(UserError, match="has NaN, infinity or a standard deviation of 0"):
            load_official_vmae(path, latents_stats=tmp_path / "broken.pt")


def test_heads_come_from_the_caller_or_the_width(tmp_path):
    path = write(tmp_path / "vmae.pth", to_official_vmae(model()))
    default = load_official_vmae(path)
    assert default.config["encoder_num_attention_heads"] == 2
    told = load_official_vmae(path, encoder_num_attention_heads=4, decoder_num_attention_heads=2)
    assert told.config["encoder_num_attention_heads"] == 4
    assert told.config["decoder_num_attention_heads"] == 2
    assert told.blocks[0].attn.heads == 4
    with pytest.raises(UserError, match="encoder_num_attention_heads=5"):
        load_official_vmae(path, encoder_num_attention_heads=5)
    for side in ("encoder", "decoder"):
        with pytest.raises(UserError, match=f"{side}_num_attention_heads .* got 0"):
            load_official_vmae(path, **{f"{side}_num_attention_heads": 0})


@pytest.mark.parametrize(("width", "heads"), [(96, 8), (192, 12), (384, 16)])
def test_official_sizes_have_their_official_heads(tmp_path, width, heads):
    ours = model(
        patch_size=8,
        encoder_hidden_size=width,
        decoder_hidden_size=width,
        encoder_num_attention_heads=heads,
        decoder_num_attention_heads=heads,
        encoder_num_hidden_layers=1,
        mlp_ratio=0.25,
    )
    again = load_official_vmae(write(tmp_path / "vmae.pth", to_official_vmae(ours)))
    assert again.config["encoder_num_attention_heads"] == heads
    assert again.config["decoder_num_attention_heads"] == heads


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), "lacks: norm.weight"),
        (lambda s: s.update(surprise=torch.zeros(1)), "does not know: surprise"),
        (
            lambda s: s.update({"norm.weight": torch.zeros(5)}),
            r"other shapes: norm.weight \(5,\) instead of \(32,\)",
        ),
        (lambda s: s.update(pos_embed=torch.zeros(1, 17, 32)), "17 places"),
        (lambda s: (s.pop("to_latent.weight"), s.update(cls_token=torch.zeros(1))), "plain MAE"),
        (lambda s: (s.clear(), s.update({"x_embedder.proj.weight": torch.zeros(1)})), "LightningDiT"),
        (lambda s: s.clear(), "it holds no tensors"),
    ],
)
def test_a_file_of_another_layout_is_told_what_it_lacks(tmp_path, change, message):
    state = to_official_vmae(model())
    change(state)
    path = write(tmp_path / "other.pth", state)
    with pytest.raises(UserError, match=message) as error:
        load_official_vmae(path)
    assert str(path) in str(error.value)


def test_no_class_but_namespace_is_unpickled(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": {}, "args": Path("x")}, path)
    with pytest.raises(UserError, match=r"object of pathlib.*not opened"):
        read_official_checkpoint(path)
    assert read_official_checkpoint(write(tmp_path / "good.pth", {}))["args"].input_size == 16
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # not left behind


def test_unreadable_files_are_named(tmp_path):
    good = write(tmp_path / "good.pth", to_official_vmae(model()))
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(good.read_bytes()[:5000])
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint at all")
    empty = tmp_path / "empty.pth"
    empty.touch()
    tensors = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, tensors)
    disguised = tmp_path / "disguised.pth"
    disguised.write_bytes(tensors.read_bytes())
    number = tmp_path / "number.pth"
    torch.save(3, number)
    for path, message in [
        (truncated, "truncated.pth"),
        (text, "not a PyTorch checkpoint"),
        (empty, "empty.pth"),
        (tensors, "safetensors file"),
        (disguised, "safetensors file"),
        (number, "holds a int"),
        (tmp_path / "absent.pth", "no checkpoint at"),
        (tmp_path, "no checkpoint at"),
    ]:
        with pytest.raises(UserError, match=message) as error:
            load_official_vmae(path)
        assert str(path) in str(error.value)
        assert ";" in str(error.value)


def test_old_format_checkpoints_are_read(tmp_path):
    state = to_official_vmae(model())
    torch.save({"model": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_official_vmae(tmp_path / "old.pth").config["encoder_hidden_size"] == 32


@needs_golden
def test_official_file_gives_the_config_it_stands_for():
    ours = load_official_vmae(GOLDEN / "vmae_tiny.pth")
    expected = json.loads((GOLDEN / "vmae_config.json").read_text())
    assert {name: ours.config[name] for name in expected} == expected
    official = read_official_checkpoint(GOLDEN / "vmae_tiny.pth")["model"]
    official = {key: tensor for key, tensor in official.items() if not key.startswith("perceptual_loss.")}
    torch.testing.assert_close(to_official_vmae(ours), official, rtol=0, atol=0)


def test_a_checkpoint_of_lightning_is_told_by_what_it_holds(tmp_path):
    weights = {"encoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.weight": torch.zeros(1)}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "model.ckpt")
    with pytest.raises(
        UserError, match=r"it holds encoder\.conv_in\.weight.*looks like a convolutional"
    ) as told:
        load_official_vmae(tmp_path / "model.ckpt")
    assert "no tensors" not in str(told.value)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    for value, told in ((float("nan"), "NaN or infinity"), (1, "torch.int64")):
        checkpoint = to_official_checkpoint(model())
        weights = dict(checkpoint["model"])
        weights["to_latent.weight"] = torch.full(weights["to_latent.weight"].shape, value)
        torch.save({"model": weights}, tmp_path / "vmae.pth")
        with pytest.raises(UserError, match=f"to_latent.weight holds {told}, expected weights"):
            load_official_vmae(tmp_path / "vmae.pth")


@pytest.mark.parametrize(
    "damage",
    [
        {"hidden_act": {"a": 1}},
        {"encoder_num_attention_heads": "two"},
        {"latents_mean": 3},
    ],
)
def test_what_a_file_says_beside_its_weights_is_checked(tmp_path, damage):
    checkpoint = to_official_checkpoint(model())
    torch.save({**checkpoint, "ldmae": {**checkpoint["ldmae"], **damage}}, tmp_path / "vmae.pth")
    with pytest.raises(UserError):
        load_official_vmae(tmp_path / "vmae.pth")


def test_a_block_of_a_huge_number_builds_no_model(tmp_path):
    checkpoint = to_official_checkpoint(model())
    checkpoint["model"]["blocks.999999999.norm1.weight"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "vmae.pth")
    with pytest.raises(UserError, match=r"lacks some of blocks\.\*"):
        load_official_vmae(tmp_path / "vmae.pth")


def test_an_empty_pickle_is_named(tmp_path):
    for content in (b"", b"\x80\x02.", b"\x80\x02N."):
        (tmp_path / "vmae.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"vmae\.pth"):
            load_official_vmae(tmp_path / "vmae.pth")
