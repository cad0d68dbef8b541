"""What an autoencoder costs."""

import pytest
import torch

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.baselines import build_baseline
from ldmae.config.autoencoder import BaselineConfig
from ldmae.core.errors import UserError
from ldmae.evaluation import efficiency
from ldmae.evaluation.efficiency import _PAPER_COST, _measure_size, count_parameters, measure_speed


def by_name(results):
    return {result.name: result for result in results}


def small(width=1 / 16):
    torch.manual_seed(0)
    return build_baseline(BaselineConfig(factor=2, latent_channels=3, width=width), 32).eval()


def test_the_papers_sizes_have_the_parameters_that_were_counted_for_them():
    with torch.device("meta"):
        vmae, sd3 = AutoencoderVMAE(), build_baseline(BaselineConfig(), 256)
    trainable, everything, weight = count_parameters(vmae)
    assert (round(trainable / 1e6, 2), round(everything / 1e6, 2)) == (10.80, 11.19)
    assert weight == 4 * everything
    # the paper's megabytes are 2**20 bytes
    assert weight / 2**20 == pytest.approx(_PAPER_COST["VMAE"]["weights in MB"], abs=0.05)
    assert count_parameters(sd3)[:2] == (83_819_683, 83_819_683)
    assert count_parameters(sd3)[2] / 2**20 == pytest.approx(319.7, abs=0.1)
    found = by_name(_measure_size(vmae, 256))
    assert found["FLOPs"].value / 2e9 == pytest.approx(20.66, abs=0.01)
    assert found["FLOPs"].value == found["FLOPs encode"].value + found["FLOPs decode"].value
    assert "multiply-add counts 2" in found["FLOPs"].note
    assert "the paper prints 704 GFLOPs" in found["FLOPs"].note
    assert "the paper prints 42.7 MB" in found["weights"].note
    assert "17331 GFLOPs" in by_name(_measure_size(sd3, 64))["FLOPs"].note
    assert "paper" not in by_name(_measure_size(small(), 32))["FLOPs"].note


def test_frozen_parts_are_not_trainable_unless_all_is_frozen():
    model = small()
    whole = sum(p.numel() for p in model.parameters())
    model.encoder.requires_grad_(False)
    assert count_parameters(model)[0] == sum(p.numel() for p in model.decoder.parameters())
    assert count_parameters(model.requires_grad_(False))[:2] == (whole, whole)


def test_bytes_follow_the_number_format():
    assert count_parameters(small().bfloat16())[2] * 2 == count_parameters(small())[2]


def test_speed_and_memory_are_measured_at_the_given_batch_and_size():
    found = by_name(measure_speed(small(), 32, batch_size=4, turns=3))
    assert set(found) == {"encode rate", "encode memory", "decode rate", "decode memory"}
    for name, result in found.items():
        assert result.value > 0, name
        assert "4 at once, 32 px, float32, CPU" in result.note
    assert found["encode rate"].unit == "images/s"


def test_the_rate_is_images_over_the_median_turns_seconds(monkeypatch):
    ticks = iter([0, 9, 10, 19, 20, 22, 30, 32, 40, 50] * 2)  # turns of 9 (warm-up), 9, 2, 2 and 10
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: next(ticks))
    found = by_name(measure_speed(small(), 8, batch_size=6, turns=3))
    assert (found["encode rate"].value, found["decode rate"].value) == (3.0, 3.0)


def test_more_images_at_once_take_more_memory():
    model = small()
    values = [by_name(measure_speed(model, 64, n, turns=1))["decode memory"].value for n in (2, 16)]
    one_activation = 16 * 64 * 64 * 8 * 4  # bytes: the widest layer at full resolution, 16 images
    assert values[1] > values[0]
    assert values[1] > one_activation


def test_another_number_format_is_measured_on_a_copy():
    model = small()
    found = by_name(measure_speed(model, 16, 2, torch.bfloat16, turns=1))
    assert next(model.parameters()).dtype == torch.float32
    assert "bfloat16" in found["decode rate"].note


def test_a_batch_that_does_not_fit_is_told_in_a_sentence(monkeypatch):
    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(efficiency, "encode_moments", too_much)
    with pytest.raises(UserError, match=r"4096 images of 8 px do not fit .* on fewer at once"):
        measure_speed(small(), 8, batch_size=4096)


def test_speed_of_what_has_no_weights_is_measured():
    class Means(torch.nn.Module):
        def encode(self, images):
            return torch.nn.functional.avg_pool2d(images, 4)

        def decode(self, latents):
            return latents.repeat_interleave(4, 2).repeat_interleave(4, 3)

    found = by_name(measure_speed(Means(), 16, batch_size=2, turns=1))
    assert found["encode rate"].value > 0
