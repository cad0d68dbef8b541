"""An autoencoder of one's own, with its own objective: plain convolutions and the absolute error."""

# b rows of a piece of the batch, C latent channels

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ldmae.autoencoders.trainings import Training
from ldmae.config.base import Channels, Settings
from ldmae.config.training import OptimizerConfig, TrainingConfig
from ldmae.contracts import BatchKeys, ObjectiveOutput


class MyAutoencoder(ModelMixin, ConfigMixin):
    """Halves the image twice; one training."""

    class Config(Settings):
        """Settings, `autoencoder.options`."""

        width: Channels = 32
        """Channels of the hidden layers."""
        latent_channels: Channels = 4
        """Channels of the latent."""
        training: TrainingConfig = TrainingConfig(steps=200, optimizer=OptimizerConfig(learning_rate=1e-3))
        """Steps, batch, optimizer."""

    @register_to_config
    def __init__(self, width: int = 32, latent_channels: int = 4) -> None:
        super().__init__()
        half, twice = nn.Conv2d, nn.ConvTranspose2d
        self.encoder = nn.Sequential(
            half(3, width, 4, 2, 1), nn.SiLU(), half(width, latent_channels, 4, 2, 1)
        )
        self.decoder = nn.Sequential(
            twice(latent_channels, width, 4, 2, 1), nn.SiLU(), twice(width, 3, 4, 2, 1)
        )

    def encode(self, x: Tensor) -> EncoderOutput:
        """Encodes images (B, 3, H, W) in [-1, 1] to latents (B, C, H / 4, W / 4)."""
        return EncoderOutput(latent=self.encoder(x))

    def decode(self, z: Tensor, return_dict: bool = True, **_: object) -> DecoderOutput | tuple[Tensor]:
        """Decodes latents to images."""
        return DecoderOutput(sample=self.decoder(z)) if return_dict else (self.decoder(z),)

    @staticmethod
    def trainings(config: Config, image_size: int) -> list[Training]:
        """Returns its trainings, in order."""

        def build(_: None, device: torch.device) -> nn.Module:
            return AbsoluteError(MyAutoencoder(config.width, config.latent_channels))

        return [Training("training", "training", image_size, config.training, build)]


class AbsoluteError(nn.Module):
    """The mean absolute error of reconstructions."""

    def __init__(self, model: MyAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor], keys: BatchKeys) -> ObjectiveOutput:
        """Computes this piece's share of the batch's mean."""
        images = batch["images"]  # (b, 3, H, W)
        restored = self.model.decode(self.model.encode(images).latent).sample
        error = (restored - images).abs().flatten(1).mean(1).sum() / keys.batch_size
        return ObjectiveOutput(loss=error, terms={"absolute error": error.detach()})
