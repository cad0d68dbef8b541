"""Muon's orthogonalisation by iterating Gram matrices, beside iterating the matrices themselves.

Usage: python benchmarks/muon.py [--presets emoji imagenet-256]
"""

import argparse
from functools import partial

import torch
from _timing import machine, print_head, print_row, side_by_side
from torch import Tensor

from ldmae.autoencoders.vmae import AutoencoderVMAE
from ldmae.config import as_dict, load_config
from ldmae.core.device import reuse_freed_memory
from ldmae.training import muon
from ldmae.training.optim import block_matrices


def plain(x: Tensor) -> Tensor:
    """The same iteration as published: each time of the whole matrices (n, r, c)."""
    if x.shape[1] > x.shape[2]:
        return plain(x.mT).mT
    a, b, c = muon._NEWTON_SCHULZ
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(muon._ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def orthogonalise(matrices: list[Tensor], iterate: object) -> None:
    ours, muon._newton_schulz = muon._newton_schulz, iterate
    muon.orthogonalised(matrices)
    muon._newton_schulz = ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["emoji", "imagenet-256"])
    presets = parser.parse_args().presets
    torch.set_num_threads(1)
    reuse_freed_memory()  # as the command line does
    print(f"{machine()}; one thread, float32; all matrices of a VMAE's blocks\n")
    print_head()
    for preset in presets:
        config = load_config(preset)
        model = AutoencoderVMAE(sample_size=config.image_size, **as_dict(config.autoencoder.model))
        matrices = [torch.randn_like(matrix) for matrix in block_matrices(model)]
        rivals = {"Gram matrices": muon._newton_schulz, "matrices": plain}
        seconds = side_by_side({name: partial(orthogonalise, matrices, f) for name, f in rivals.items()})
        print_row(preset, seconds, "matrices", len(matrices), "matrices")


if __name__ == "__main__":
    main()
