"""The smallest real trainings: a linear model that learns a linear map, an SD-VAE with its adversary, and a
VMAE with every term that an objective can have.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.utils.data import Dataset

from ldmae.autoencoders.baselines import build_baseline
from ldmae.autoencoders.decoder_training import DecoderObjective, freeze_all_but_decoder
from ldmae.autoencoders.discriminator import PatchDiscriminator
from ldmae.autoencoders.masked_objective import MaskedObjective
from ldmae.autoencoders.reconstruction_objective import ReconstructionObjective
from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config.autoencoder import (
    BaselineConfig,
    DecoderObjectiveConfig,
    MaskedObjectiveConfig,
    MaskingConfig,
    ReconstructionObjectiveConfig,
)
from ldmae.config.training import CheckpointConfig, OptimizerConfig, TrainingConfig
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.core.random import generator, normal
from ldmae.perception.spatial import SpatialFeatures
from ldmae.training.engine import Trainer


class Points(Dataset):
    """Items (epoch, index), whose augmentation is keyed by both."""

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        x = torch.randn(4, generator=generator("point", index))
        shift = 0.01 * torch.randn(4, generator=generator("augment", epoch, index))
        return {"x": x + shift, "y": x[:2] * 2 - x[2:]}


class Regression(nn.Module):
    """Squared error from inputs with keyed noise, and a weak pull of the outputs to zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.seen_dtype: torch.dtype | None = None
        self.modes: set[bool] = set()

    def forward(self, batch: dict[str, torch.Tensor], keys: BatchKeys) -> ObjectiveOutput:
        """Returns shares of the whole batch's means."""
        self.modes.add(self.training)
        hidden = self.model[:2](batch["x"] + 0.1 * normal((4,), keys, "input", batch["x"].device))
        self.seen_dtype = hidden.dtype
        y = self.model[2](hidden).float()
        error = (y - batch["y"]).square().mean(1).sum() / keys.batch_size
        size = y.square().mean(1).sum() / keys.batch_size
        return ObjectiveOutput(error + 0.01 * size, {"error": error.detach(), "size": size.detach()})


def accelerator(mixed_precision: str = "no") -> Accelerator:
    """Returns an accelerator on the CPU, whatever another test made before."""
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    return Accelerator(cpu=True, mixed_precision=mixed_precision)


def trainer(folder: Path, objective: nn.Module | None = None, **changes: Any) -> Trainer:
    """Returns a trainer of 10 steps; `changes` are settings of the training, or fields of the trainer."""
    optimizer = {"learning_rate": 0.05, "weight_decay": 0.01} | changes.pop("optimizer", {})
    checkpoint = {"every_steps": 4} | changes.pop("checkpoint", {})
    fields = {name: changes.pop(name) for name in list(changes) if name in Trainer.__dataclass_fields__}
    settings = {"steps": 10, "batch_size": 6, "num_workers": 0, "log_every": 5} | changes
    config = TrainingConfig(
        optimizer=OptimizerConfig(**optimizer), checkpoint=CheckpointConfig(**checkpoint), **settings
    )
    return Trainer(
        **{
            "objective": objective if objective is not None else Regression(),
            "dataset": Points(),
            "config": config,
            "stage": "tiny",
            "folder": folder / "states",
            "metrics_path": folder / "metrics.jsonl",
            "seed": 0,
            "accelerator": accelerator(),
            **fields,
        }
    )


class Pictures(Dataset):
    """Small pictures, as items (epoch, index)."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, index = key
        coarse = torch.rand(3, 3, 3, generator=generator("picture", index)) * 2 - 1
        fine = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
        return {"images": fine + 0.01 * torch.randn(3, 12, 12, generator=generator("augment", epoch, index))}


def adversarial(start: int = 2, **changes: Any) -> ReconstructionObjective:
    """Returns a small SD-VAE with its adversary, which joins in at step `start`."""
    torch.manual_seed(0)
    model = build_baseline(BaselineConfig(factor=2, latent_channels=2, width=1 / 32), 12)
    settings = {"perceptual_weight": 0.0, "kl_weight": 1e-3, "adversarial_weight": 0.5} | changes
    config = ReconstructionObjectiveConfig(adversarial_start_step=start, **settings)
    return ReconstructionObjective(model, config, None, PatchDiscriminator(1, 8))


def everything() -> MaskedObjective:
    """Returns a small VMAE with all that its objective can have; the discriminator joins in at step 2."""
    torch.manual_seed(0)
    shape = {f"{side}_hidden_size": 16 for side in ("encoder", "decoder")}
    shape |= {f"{side}_num_hidden_layers": 1 for side in ("encoder", "decoder")}
    shape |= {f"{side}_num_attention_heads": 2 for side in ("encoder", "decoder")}
    model = AutoencoderVMAE(
        sample_size=12, patch_size=2, latent_channels=3, use_mask_token=True, head_features=4, **shape
    )
    config = MaskedObjectiveConfig(
        masking=MaskingConfig(ratio_range=[-0.2, 0.7]),
        perceptual_weight=0.0,
        kl_weight=1e-3,
        latent_noise=0.3,
        interpolation_noise=0.5,
        expansion_weight=1e-3,
        equivariance=0.5,
        alignment_weight=0.1,
        spectrum_weight=0.01,
        adversarial_weight=0.5,
        adversarial_start_step=2,
    )
    convolution = nn.Conv2d(3, 5, 2, 2)
    features = SpatialFeatures("tiny", 5, 2, convolution, lambda images: convolution(images / 127.5 - 1))
    return MaskedObjective(model, config, None, PatchDiscriminator(1, 8), features)


def decoder() -> DecoderObjective:
    """Returns the decoder of a small AutoencoderKL with all that its objective can have."""
    torch.manual_seed(0)
    model: Any = build_baseline(BaselineConfig(factor=2, latent_channels=2, width=1 / 32), 12)
    freeze_all_but_decoder(model)
    model.enable_gradient_checkpointing()
    config = DecoderObjectiveConfig(
        perceptual_weight=0.0, latent_noise=0.3, adversarial_weight=0.5, adversarial_start_step=2
    )
    return DecoderObjective(model, config, None, PatchDiscriminator(1, 8))


OBJECTIVES = {"sd-vae": adversarial, "vmae": everything, "decoder": decoder}


def adversarial_trainer(folder: Path, objective: nn.Module | None = None, **changes: Any) -> Trainer:
    """Returns a trainer of 6 steps of 8 pictures, with an adversary."""
    optimizer = {"learning_rate": 1e-3, "discriminator_learning_rate": 5e-4} | changes.pop("optimizer", {})
    settings = {"dataset": Pictures(), "steps": 6, "batch_size": 8, "log_every": 2, "optimizer": optimizer}
    return trainer(folder, adversarial() if objective is None else objective, **(settings | changes))
