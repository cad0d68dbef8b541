"""The paper's figures (arXiv 2507.09984, ICCV 2025), by autoencoder as our units call them.

All at 256 px: ImageNet-1K, LPIPS, FID on Inception's features, LightningDiT-B/1.
"""

from __future__ import annotations

import pandas as pd

TITLES = {"ae": "AE", "dae": "DAE", "vae": "VAE", "sd-vae": "SD-VAE", "vmae": "VMAE"}
"""The five autoencoders, in the paper's order."""

ABLATION_TITLES = {
    "vmae-mse": "MSE only",
    "vmae-lm": "+ L_M",
    "vmae-lm-lreg": "+ L_reg",
    "vmae": "+ L_P",
}
"""The ablation's rows: each adds a term to the one above; the last is VMAE itself."""

MEASURED_ON = ("ImageNet-1K", "256 px", "LPIPS", "Inception's features")
"""What the two tables below were measured on: images, size, perceptual distance, features."""

LOWER_IS_BETTER = {"L1", "LPIPS", "rFID", "gFID", "sFID"}
"""Columns; in the others higher is."""


def _table(columns: str, **rows: str) -> dict[str, dict[str, str]]:
    names = columns.split()
    return {
        variant.replace("_", "-"): dict(zip(names, row.split(), strict=True)) for variant, row in rows.items()
    }


RECONSTRUCTION = _table(
    "L1 PSNR SSIM LPIPS rFID",
    ae="0.0218 32.18 0.895 0.172 6.21",
    dae="0.0237 31.31 0.887 0.175 3.97",
    vae="0.0281 29.40 0.825 0.281 17.41",
    sd_vae="0.0223 29.85 0.853 0.099 1.89",
    vmae="0.0221 31.52 0.890 0.062 0.89",
)
"""ImageNet-1K validation; figures as printed."""

GENERATION = _table(
    "gFID sFID IS precision recall",
    ae="12.92 12.65 124.0 0.724 0.339",
    dae="8.60 12.12 160.3 0.797 0.402",
    vae="34.60 22.32 54.6 0.517 0.415",
    sd_vae="6.49 5.60 173.3 0.819 0.429",
    vmae="5.98 5.16 185.5 0.844 0.435",
)
"""ImageNet; figures as printed."""


def columns_led_by(variant: str) -> tuple[int, int]:
    """Returns in how many columns of the two tables an autoencoder is the best, and how many there are."""
    led = total = 0
    for table in (RECONSTRUCTION, GENERATION):
        for column in table[variant]:
            best = min if column in LOWER_IS_BETTER else max
            led += table[variant][column] == best((row[column] for row in table.values()), key=float)
            total += 1
    return led, total


ABLATION = _table(
    "PSNR SSIM rFID LPIPS gFID",
    vmae_mse="32.18 0.906 6.21 0.172 12.92",
    vmae_lm="32.01 0.913 4.66 0.130 8.92",
    vmae_lm_lreg="31.14 0.881 1.59 0.112 6.32",
    vmae="31.52 0.889 0.89 0.062 5.98",
)
"""ImageNet-1K; figures as printed."""


COST = pd.DataFrame(
    {
        "printed MB": ["319.7", "42.7", "13.4 %"],
        "printed GFLOPs": ["17,331", "704", "4.1 %"],
        "printed training hours": ["24", "9", "—"],
        "counted here: M parameters": ["83.82", "11.19", "13.35 %"],
        "counted here: G multiply-adds": ["447.6", "20.6", "4.6 %"],
    },
    index=["Convolutional: AE, DAE, VAE, SD-VAE", "VMAE", "VMAE's share"],
)
"""What a model costs at 256 px, to encode and decode one image: as the paper prints it, and counted here."""
COST_NOTE = (
    "The paper's megabytes are MiB of float32 weights. Counted here with diffusers' AutoencoderKL in Stable "
    "Diffusion 3's layout and with VMAE's f8d16; of trainable parameters alone VMAE has 12.9 %. We could not "
    "reproduce the paper's 4.1 % of the FLOPs."
)
