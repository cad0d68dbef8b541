"""The autoencoders that `ldmae compare` can train, each by the settings that set it apart."""

from __future__ import annotations

from dataclasses import dataclass

from ldmae.config.autoencoder import KINDS

_PRETRAINED = "autoencoder.pretraining.objective."
_TUNED = "autoencoder.tuning.objective."
_BASELINE = "autoencoder.baseline."
_OPTIMIZER = ("name", "learning_rate", "betas", "weight_decay", "schedule", "warmup_steps", "gradient_clip")
_VIT = (
    f"{_BASELINE}network=vit",
    *(
        f"{_BASELINE}training.optimizer.{key}=${{autoencoder.pretraining.training.optimizer.{key}}}"
        for key in (*_OPTIMIZER, "muon_learning_rate", "muon_momentum")
    ),
)
"""A baseline's objective on VMAE's network, with VMAE's optimizer."""


@dataclass(frozen=True)
class Variant:
    """An autoencoder of the comparison, and what sets it apart."""

    title: str
    group: str
    """`autoencoders` or `ablation`."""
    settings: tuple[str, ...]

    @property
    def is_baseline(self) -> bool:
        """Whether it is trained in a baseline's one stage."""
        return any(setting.removeprefix("autoencoder.kind=") in KINDS for setting in self.settings)

    @property
    def is_conv(self) -> bool:
        """Whether its network is the convolutional one, whose width can be fitted to VMAE's cost."""
        return self.is_baseline and not set(_VIT) <= set(self.settings)


_UNMASKED = (f"{_PRETRAINED}masking.ratio=0", f"{_PRETRAINED}masked_weight=0")
# nothing holds the variance up: the latent is its mean, to the diffusion model too
_NOISELESS = (
    f"{_PRETRAINED}kl_weight=0",
    f"{_PRETRAINED}sample_posterior=false",
    "autoencoder.pretraining.initial_logvar=-30",
)
_SD_VAE = "autoencoder.kind=sd-vae"
_NO_PERCEPTUAL = (f"{_TUNED}perceptual_weight=0",)
_NEVER_PERCEPTUAL = (f"{_PRETRAINED}perceptual_weight=0", *_NO_PERCEPTUAL)
_NOISE = f"{_TUNED}latent_noise=0.25"
_COMBINED = (*_NO_PERCEPTUAL, _NOISE, f"{_PRETRAINED}latent_noise=0.3", "autoencoder.model.head_features=16")


def _beyond(title: str, *settings: str) -> Variant:
    return Variant(f"VMAE + {title}", "ablation", settings)


VARIANTS = {
    **{kind: Variant(title, "autoencoders", (f"autoencoder.kind={kind}",)) for kind, title in KINDS.items()},
    "vmae": Variant("VMAE", "autoencoders", ("autoencoder.kind=vmae",)),
    "vmae-mse": Variant("MSE only", "ablation", (*_NEVER_PERCEPTUAL, *_UNMASKED, *_NOISELESS)),
    "vmae-lm": Variant("+ L_M", "ablation", (*_NEVER_PERCEPTUAL, *_NOISELESS)),
    "vmae-lm-lreg": Variant("+ L_reg", "ablation", _NEVER_PERCEPTUAL),
    "vmae-noise": Variant("+ noise in tuning", "ablation", (_NOISE,)),
    **{
        f"sd-vae-no-{what}": Variant(title, "ablation", (_SD_VAE, f"{_BASELINE}objective.{what}_weight=0"))
        for what, title in {"perceptual": "SD-VAE without L_P", "adversarial": "SD-VAE without GAN"}.items()
    },
    # one network, several objectives; and VMAE's objective on the other network
    **{
        f"vit-{kind}": Variant(
            f"{KINDS[kind]} on VMAE's network", "ablation", (f"autoencoder.kind={kind}", *_VIT)
        )
        for kind in ("ae", "dae", "vae")
    },
    "vit-ae-noise": Variant(
        "AE on VMAE's network, noise in tuning",
        "ablation",
        (*_NEVER_PERCEPTUAL, *_UNMASKED, *_NOISELESS, _NOISE),
    ),
    "vit-vmae-no-mask": Variant("VMAE without masks", "ablation", _UNMASKED),
    "vit-vmae-no-noise": Variant("VMAE without noise", "ablation", _NOISELESS),
    "conv-vmae-loss": Variant(
        "convolutions, VMAE's loss without masks",
        "ablation",
        (
            "autoencoder.kind=vae",
            f"{_BASELINE}objective.variance_kl=true",
            f"{_BASELINE}objective.kl_weight=${{{_PRETRAINED}kl_weight}}",
            f"{_BASELINE}objective.perceptual_weight=${{{_TUNED}perceptual_weight}}",
        ),
    ),
    # one change at a time (docs/concepts/beyond-the-paper.md)
    "vmae-expansion": _beyond(
        "variance expansion", f"{_PRETRAINED}expansion_weight=1e-4", f"{_PRETRAINED}kl_weight=0"
    ),
    "vmae-expansion-absolute": _beyond(
        "absolute variance expansion",
        f"{_PRETRAINED}expansion=absolute",
        f"{_PRETRAINED}expansion_weight=1e-5",
        f"{_PRETRAINED}kl_weight=0",
    ),
    "vmae-noise-pretraining": _beyond("noise in pre-training", f"{_PRETRAINED}latent_noise=0.3"),
    "vmae-interpolation": _beyond(
        "interpolated noise and drawn masks",
        f"{_PRETRAINED}interpolation_noise=3",
        f"{_PRETRAINED}masking.ratio_range=[-0.1,0.7]",
    ),
    "vmae-no-perceptual": Variant("VMAE without L_P in tuning", "ablation", _NO_PERCEPTUAL),
    "vmae-noise-no-perceptual": Variant(
        "VMAE, noise and no L_P in tuning", "ablation", (*_NO_PERCEPTUAL, _NOISE)
    ),
    "vmae-long": Variant(
        "VMAE, 6,000 + 2,300 steps",  # in the arenas: about as long as SD-VAE-style takes
        "ablation",
        ("autoencoder.pretraining.training.steps=6000", "autoencoder.tuning.training.steps=2300"),
    ),
    "vmae-discriminator": _beyond("discriminator in tuning", f"{_TUNED}adversarial_weight=0.5"),
    "vmae-wide-head": _beyond("wider pixel head", "autoencoder.model.head_features=16"),
    "vmae-equivariance": _beyond("equivariance", f"{_PRETRAINED}equivariance=0.5"),
    "vmae-alignment": _beyond("alignment", f"{_PRETRAINED}alignment_weight=0.1"),
    "vmae-spectrum": _beyond("spectrum matching", f"{_PRETRAINED}spectrum_weight=0.01"),
    "vmae-combined": _beyond("four changes", *_COMBINED),
    "vmae-combined-alignment": _beyond(
        "four changes and alignment", *_COMBINED, f"{_PRETRAINED}alignment_weight=0.1"
    ),
}
"""What can be compared, besides one's own. The ablation's rows add up: MSE; + L_M; + L_reg; `vmae` itself,
which is + L_P. What follows them is not in the paper: VMAE with one change each, and objectives on the other
network."""


def variant(name: str) -> Variant:
    """Returns what is compared under a name: of `VARIANTS`, or a user's own autoencoder."""
    if name in VARIANTS:
        return VARIANTS[name]
    module, _, kind = name.partition(":")
    title = f"{module.rpartition('.')[2]}:{kind}"
    return Variant(title, "autoencoders", (f"autoencoder.kind={name}",))
