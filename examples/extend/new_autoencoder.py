"""A new autoencoder: the principal components of image patches, as a diffusers model."""

# B batch, C latent channels, h w latent grid, p patch size, P = 3·p·p numbers of a patch

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.modeling_utils import ModelMixin
from skimage import data
from torch import Tensor


class PatchComponents(ModelMixin, ConfigMixin):
    """Encodes a patch to its first principal components; decoding is their sum. No network, no training."""

    @register_to_config
    def __init__(self, patch_size: int = 8, latent_channels: int = 16) -> None:
        super().__init__()
        numbers = 3 * patch_size**2
        self.mean = torch.nn.Parameter(torch.zeros(numbers, 1), requires_grad=False)
        self.axes = torch.nn.Parameter(torch.eye(numbers)[:latent_channels], requires_grad=False)  # (C, P)

    def encode(self, x: Tensor) -> EncoderOutput:
        """Encodes images (B, 3, H, W) in [-1, 1] to latents (B, C, h, w); they are deterministic."""
        patches = F.pixel_unshuffle(x, self.config.patch_size)  # (B, P, h, w)
        latents = torch.einsum("cp,bphw->bchw", self.axes, patches - self.mean[..., None])
        return EncoderOutput(latent=latents)

    def decode(self, z: Tensor, return_dict: bool = True, **_: object) -> DecoderOutput | tuple[Tensor]:
        """Decodes latents (B, C, h, w) to images (B, 3, H, W)."""
        patches = torch.einsum("cp,bchw->bphw", self.axes, z) + self.mean[..., None]
        images = F.pixel_shuffle(patches, self.config.patch_size)
        return DecoderOutput(sample=images) if return_dict else (images,)

    def fit(self, image: Tensor) -> "PatchComponents":
        """Takes mean and axes from the patches of one image (3, H, W)."""
        p, channels = self.config.patch_size, self.config.latent_channels
        patches = F.unfold(image[None], p, stride=p // 2)[0]  # (P, number of patches)
        self.mean.data = patches.mean(1, keepdim=True)
        self.axes.data = (
            torch.linalg.svd(patches - self.mean, full_matrices=False).U[:, :channels].T.contiguous()
        )
        return self


def photo_components() -> PatchComponents:
    """Builds the autoencoder: `ldmae` calls this without arguments."""
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1) / 127.5 - 1
    return PatchComponents().fit(photo)
