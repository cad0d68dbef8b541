import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from torch import nn

from ldmae.config.diffusion import DiffusionConfig, FlowConfig
from ldmae.contracts import BatchKeys
from ldmae.core.errors import UserError
from ldmae.core.random import normal
from ldmae.diffusion.backbones import build_backbone
from ldmae.diffusion.flow import FlowMatchingObjective, interpolate, scheduler_shift, set_sampling_times
from ldmae.diffusion.solvers import solver_class

from ..tiny import tiny_transformer


def objective(config=None, **changes) -> FlowMatchingObjective:
    model = tiny_transformer(std=0.2, **{"in_channels": 3, "num_classes": 5, **changes})
    return FlowMatchingObjective(model, config or FlowConfig())


def batch(rows=8):
    source = torch.Generator().manual_seed(2)
    return {"latents": torch.randn(rows, 3, 4, 4, generator=source), "labels": torch.arange(rows) % 5}


def keys(rows=range(8), step=3):
    return BatchKeys(seed=0, step=step, rows=rows, batch_size=8)


class Recorder(nn.Module):
    """Stands where the network stands and keeps what it was given."""

    null_class = 5

    def __init__(self, class_dropout_prob=0.1):
        super().__init__()
        self.config = type("Config", (), {"class_dropout_prob": class_dropout_prob})

    def forward(self, x, t, labels, return_dict):
        self.x, self.t, self.labels = x, t, labels
        return (torch.zeros_like(x),)


def test_pieces_of_a_batch_add_up_to_the_batch():
    objective_, whole = objective(), batch()
    together = objective_(whole, keys())
    pieces = [
        objective_({name: tensor[part] for name, tensor in whole.items()}, keys(range(8)[part]))
        for part in (slice(0, 3), slice(3, 8))
    ]
    torch.testing.assert_close(pieces[0].loss + pieces[1].loss, together.loss)
    terms = pieces[0].terms["velocity"] + pieces[1].terms["velocity"]
    torch.testing.assert_close(terms, together.terms["velocity"])
    torch.testing.assert_close(terms, together.loss.detach())
    assert not together.terms["velocity"].requires_grad


def test_network_sees_points_between_keyed_noise_and_data_and_loss_is_their_velocity():
    network = Recorder()
    output = FlowMatchingObjective(network, FlowConfig())(batch(), keys())
    noise, z = normal((3, 4, 4), keys(), "noise"), batch()["latents"]
    t = network.t.view(-1, 1, 1, 1)
    torch.testing.assert_close(network.x, t * z + (1 - t) * noise)
    torch.testing.assert_close(output.loss, (z - noise).square().mean())


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda x: (x[:, :1],), r"got one of \(8, 1, 4, 4\)"),  # its loss would be broadcast
        (lambda x: x, "got Tensor"),
        (lambda x: None, "got NoneType"),
    ],
)
def test_a_network_that_returns_something_else_than_the_velocity_is_refused(returned, told):
    class Wrong(Recorder):
        def forward(self, x, t, labels, return_dict):
            return returned(x)

    with pytest.raises(UserError, match=rf"Wrong must return a tuple .* of \(8, 3, 4, 4\), {told}"):
        FlowMatchingObjective(Wrong(), FlowConfig())(batch(), keys())


def test_parts_of_ones_own_that_cannot_be_built_are_named(tmp_path, monkeypatch):
    (tmp_path / "odd_parts.py").write_text(ODD_PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"solver=odd_parts:Needs can't be built without arguments"):
        solver_class("odd_parts:Needs")
    with pytest.raises(UserError, match=r"kind=odd_parts:Plain can\'t be built, or lacks .*null_class"):
        build_backbone(DiffusionConfig(kind="odd_parts:Plain"), 4, 3, 5)


ODD_PARTS = """
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn

class Needs(FlowMatchEulerDiscreteScheduler):
    def __init__(self, order):
        super().__init__()

class Plain(nn.Module):
    def __init__(self, sample_size, in_channels, num_classes):
        super().__init__()
"""


def test_path_runs_from_noise_to_data():
    z, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert torch.equal(interpolate(z, noise, torch.tensor([0.0, 1.0])), torch.stack([noise[0], z[1]]))


def test_times_follow_their_density():
    many = BatchKeys(seed=0, step=0, rows=range(4000), batch_size=4000)
    data = {"latents": torch.zeros(4000, 1, 1, 1), "labels": torch.zeros(4000, dtype=torch.long)}
    network = Recorder()
    FlowMatchingObjective(network, FlowConfig(logit_mean=0.5, logit_std=0.8))(data, many)
    logits = torch.logit(network.t.double())
    assert logits.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logits.std().item() == pytest.approx(0.8, abs=0.05)
    FlowMatchingObjective(network, FlowConfig(time_density="uniform"))(data, many)
    assert network.t.mean().item() == pytest.approx(0.5, abs=0.02)
    assert network.t.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_labels_are_dropped_at_the_model_s_rate_and_by_key():
    many = BatchKeys(seed=0, step=0, rows=range(2000), batch_size=2000)
    data = {"latents": torch.zeros(2000, 1, 1, 1), "labels": torch.arange(2000) % 5}
    network = Recorder(class_dropout_prob=0.3)
    FlowMatchingObjective(network, FlowConfig())(data, many)
    dropped = network.labels == 5
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(network.labels[~dropped], data["labels"][~dropped])
    FlowMatchingObjective(network, FlowConfig())(data, many)
    assert torch.equal(network.labels == 5, dropped)


def test_another_step_draws_anew():
    objective_ = objective()
    assert objective_(batch(), keys(step=3)).loss != objective_(batch(), keys(step=4)).loss
    assert objective_(batch(), keys(step=3)).loss == objective_(batch(), keys(step=3)).loss


def test_model_without_null_class_trains():
    output = objective(num_classes=1)({**batch(), "labels": torch.zeros(8, dtype=torch.long)}, keys())
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_loss_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = objective()(batch(), keys())
    assert output.loss.dtype == torch.float32


@pytest.mark.parametrize("shift", [0.3, 0.7, 2.0])
def test_scheduler_shift_is_the_time_shift_seen_from_sigma(shift):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift * t / (1 + (shift - 1) * t)
    sigma, k = 1 - t, scheduler_shift(shift)
    torch.testing.assert_close(1 - k * sigma / (1 + (k - 1) * sigma), shifted)
    scheduler = FlowMatchEulerDiscreteScheduler()
    set_sampling_times(scheduler, 10, shift)
    torch.testing.assert_close(1 - scheduler.sigmas, shifted.float(), rtol=0, atol=2e-7)


@pytest.mark.parametrize("scheduler_class", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_shift_of_a_call_is_that_of_a_scheduler_made_so_and_is_forgotten(scheduler_class):
    scheduler = scheduler_class(shift=3.0)
    set_sampling_times(scheduler, 6)
    own = scheduler.sigmas
    for unshifted in (0, 1):
        set_sampling_times(scheduler, 6, unshifted)
        plain = scheduler_class()
        set_sampling_times(plain, 6)
        torch.testing.assert_close(scheduler.sigmas, plain.sigmas)
    set_sampling_times(scheduler, 6)
    assert torch.equal(scheduler.sigmas, own)
    assert scheduler.config.shift == 3.0


def test_shift_of_a_call_replaces_dynamic_shifting():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    set_sampling_times(scheduler, 4, 1.0)
    torch.testing.assert_close(scheduler.sigmas, torch.linspace(1, 0, 5))
    set_sampling_times(scheduler, 4, None, tokens=256)
    grid = torch.linspace(1, 0, 5)[:-1]
    k = torch.tensor(0.5).exp()  # base_shift belongs to 256 tokens
    torch.testing.assert_close(scheduler.sigmas[:-1], k * grid / (1 + (k - 1) * grid))
    assert scheduler.config.use_dynamic_shifting


@pytest.mark.parametrize("settings", [{"time_density": "logit-normal"}, {"logit_std": 0.0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        FlowConfig(**settings)


def test_a_heun_schedulers_own_shift_is_the_same_as_one_that_is_given():
    own, given = FlowMatchHeunDiscreteScheduler(shift=1 / 0.3), FlowMatchHeunDiscreteScheduler()
    set_sampling_times(own, 5)
    set_sampling_times(given, 5, 0.3)
    torch.testing.assert_close(own.sigmas, given.sigmas)
