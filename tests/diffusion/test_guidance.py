import pytest
import torch

from ldmae.diffusion.guidance import guided_velocity

NULL = 7


class Network:
    """Velocity = class number + time, and a record of the batches it was asked for."""

    def __init__(self):
        self.batches = []

    def __call__(self, latents, t, class_labels):
        self.batches.append(len(latents))
        return torch.ones_like(latents) * class_labels.view(-1, 1, 1, 1) + t


def velocity(network, t=0.5, **options):
    return guided_velocity(
        network, torch.zeros(2, 4, 3, 3), t, torch.tensor([1, 2]), null_class=NULL, **options
    )


def test_scale_one_is_the_class_and_costs_one_batch():
    network = Network()
    assert velocity(network)[:, 0, 0, 0].tolist() == [1.5, 2.5]
    assert network.batches == [2]


def test_scale_zero_is_the_null_class():
    assert velocity(Network(), scale=0.0)[:, 0, 0, 0].tolist() == [7.5, 7.5]


def test_guidance_extrapolates_from_null_to_class():
    network = Network()
    assert velocity(network, scale=3.0)[:, 0, 0, 0].tolist() == [7.5 - 18, 7.5 - 15]
    assert network.batches == [4]


def test_only_the_first_channels_are_guided_where_asked():
    guided = velocity(Network(), scale=3.0, channels=3)
    assert torch.equal(guided[:, :3], velocity(Network(), scale=3.0)[:, :3])
    assert torch.equal(guided[:, 3:], velocity(Network())[:, 3:])
    everything = velocity(Network(), scale=3.0, channels=4)
    assert torch.equal(everything, velocity(Network(), scale=3.0))


@pytest.mark.parametrize(
    ("t", "active"), [(0.09, False), (0.1, True), (0.5, True), (0.8, True), (0.81, False)]
)
def test_guidance_acts_in_its_interval_only(t, active):
    network = Network()
    guided = velocity(network, t=t, scale=3.0, interval=(0.1, 0.8))
    assert network.batches == [4 if active else 2]
    assert torch.equal(guided, velocity(Network(), t=t, scale=3.0 if active else 1.0))


def test_interval_forgives_float32_rounding_of_the_grid():
    sigma = torch.tensor(0.8)  # 1 - sigma reads 0.19999999
    assert (1 - sigma).item() < 0.2
    network = Network()
    velocity(network, t=(1 - sigma).item(), scale=2.0, interval=(0.2, 1.0))
    assert network.batches == [4]
