"""A new objective: VMAE's own, and latents that turn with the image (EQ-VAE, arXiv 2502.09509)."""

from pathlib import Path
from tempfile import mkdtemp

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldmae import AutoencoderVMAE
from ldmae.autoencoders.masked_objective import MaskedObjective
from ldmae.config.autoencoder import MaskedObjectiveConfig
from ldmae.config.training import OptimizerConfig, TrainingConfig
from ldmae.contracts import BatchKeys, ObjectiveOutput
from ldmae.images.builtin import open_builtin
from ldmae.images.dataset import ImageDataset
from ldmae.training.engine import Trainer


class TurningObjective(nn.Module):
    """VMAE's loss plus the error of decoding latents that were turned by 90°."""

    def __init__(self, model: AutoencoderVMAE, config: MaskedObjectiveConfig, weight: float = 0.5) -> None:
        super().__init__()
        self.model = model  # what is trained and saved; the trainer looks for this name
        self._own = (MaskedObjective(model, config),)  # in a tuple: the model has one owner
        self.weight = weight

    def forward(self, batch: dict[str, Tensor], keys: BatchKeys) -> ObjectiveOutput:
        """Computes this piece's SHARE of the whole batch's loss: sums over rows / batch_size."""
        own = self._own[0](batch, keys)
        images = batch["images"]  # (b, 3, H, W) in [-1, 1]
        latents = self.model.encode(images).latent_dist.mode()
        wrong = self.model.decode(latents.rot90(1, (2, 3))).sample - images.rot90(1, (2, 3))
        turned = wrong.square().flatten(1).mean(1).sum() / keys.batch_size
        return ObjectiveOutput(own.loss + self.weight * turned, {**own.terms, "turned": turned.detach()})


def main(steps: int = 40) -> list[str]:
    """Trains a small VMAE on handwritten digits; returns the lines of metrics.jsonl."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sizes.items()}
    model = AutoencoderVMAE(sample_size=32, patch_size=4, latent_channels=8, use_mask_token=True, **shape)
    folder = Path(mkdtemp())
    Trainer(
        objective=TurningObjective(model, MaskedObjectiveConfig(perceptual_weight=0.0)),
        dataset=ImageDataset(open_builtin("digits"), size=32),
        config=TrainingConfig(
            steps=steps, batch_size=16, log_every=10, optimizer=OptimizerConfig(learning_rate=1e-3)
        ),
        stage="turning",
        folder=folder / "checkpoints",
        metrics_path=folder / "metrics.jsonl",
        seed=0,
        accelerator=Accelerator(),
    ).run()
    return (folder / "metrics.jsonl").read_text().splitlines()


if __name__ == "__main__":
    print(*main(), sep="\n")
