"""Muon: orthogonalised momentum for the matrices of a transformer's blocks, and AdamW for all the rest."""

# R C rows and columns of a matrix, R >= C; n bands of b rows

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al., 2024), steep at 0, so that few are enough."""

_ITERATIONS = 4
"""A fifth changes little; with three, the emoji preset's held-out error is 10 % higher."""

_BAND = 64
"""Rows that are orthogonalised together: as many as a usual attention head has."""


class Muon(torch.optim.AdamW):
    """AdamW whose parameter groups with `muon=True` take an orthogonalised step instead.

    A matrix's step is its Nesterov momentum with all singular values brought near 1, so that every direction
    is learned at the same pace (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
    2024). Bands of 64 rows of the longer side (an attention head, or as many hidden units) are orthogonalised
    separately, which takes a sixth of the operations, and all bands together, which takes few calls.
    `torch.optim.Muon` computes in bfloat16, which many CPUs only emulate; this one in the parameters'
    own dtype.

    Args:
        params: parameter groups; those with `muon=True` hold matrices only and have a `momentum`.
        settings: AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Takes one step; a gradient scaler's overflow skips it, as in a fused AdamW."""
        overflow = getattr(self, "found_inf", None)
        gradients = {}
        for group in self.param_groups:
            if group.get("muon"):
                gradients |= {p: p.grad for p in group["params"] if p.grad is not None}
                if overflow is None or not overflow.item():
                    self._step_matrices(group)
        for parameter in gradients:
            parameter.grad = None  # AdamW passes over it
        loss = super().step(closure)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        steps = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                # AdamW, when it takes up a saved state, looks for a step in each parameter's
                state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
            state["step"] += 1
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            steps.append(parameter.grad.lerp(state["momentum"], group["momentum"]))
        for parameter, step in zip(parameters, orthogonalised(steps), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(step, alpha=-group["lr"])


def orthogonalised(matrices: list[Tensor], band: int = _BAND) -> list[Tensor]:
    """Brings the singular values of each band of each matrix to between about 0.7 and 1.2.

    A matrix that FSDP keeps in pieces is gathered, and comes back in the same pieces.

    Args:
        matrices: of any shapes; a band is taken along the longer side.
        band: rows of a band.

    Returns:
        As many matrices of the same shapes.
    """
    whole = [m.full_tensor() if isinstance(m, DTensor) else m for m in matrices]
    wide = [m.shape[0] < m.shape[1] for m in whole]
    tall = [m.mT if lies else m for m, lies in zip(whole, wide, strict=True)]  # (R, C) each
    by_width: defaultdict[int, list[int]] = defaultdict(list)
    for i, matrix in enumerate(tall):
        by_width[matrix.shape[1]].append(i)
    for width, members in by_width.items():
        # rows of zeros, which fill the last band, stay zeros and move nothing else
        bands = [
            F.pad(tall[i], (0, 0, 0, -len(tall[i]) % band)).view(-1, band, width) for i in members
        ]  # (n, b, C) each
        results = _newton_schulz(torch.cat(bands)).split([len(piece) for piece in bands])
        for i, result in zip(members, results, strict=True):
            tall[i] = result.reshape(-1, width)[: len(tall[i])]
    finished = [m.mT if lies else m for m, lies in zip(tall, wide, strict=True)]
    return [
        distribute_tensor(made.contiguous(), given.device_mesh, given.placements)
        if isinstance(given, DTensor)
        else made
        for made, given in zip(finished, matrices, strict=True)
    ]


def _newton_schulz(x: Tensor) -> Tensor:
    """Orthogonalises each of (n, r, c).

    Each iteration multiplies x by a polynomial of its Gram matrix, which commutes with it. So the Gram
    matrices (n, r, r) alone are iterated, and x is multiplied once, by the product of all polynomials.
    """
    if x.shape[1] > x.shape[2]:
        return _newton_schulz(x.mT).mT
    gram = x @ x.mT
    norm = gram.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].sqrt() + 1e-7
    gram = gram / norm.square()
    product = factor = _polynomial(gram)
    for _ in range(_ITERATIONS - 1):
        gram = factor @ gram @ factor
        factor = _polynomial(gram)
        product = factor @ product
    return (product / norm) @ x


def _polynomial(gram: Tensor) -> Tensor:
    """Returns a I + b G + c G² of Gram matrices G (n, r, r)."""
    a, b, c = _NEWTON_SCHULZ
    made = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    made.diagonal(dim1=1, dim2=2).add_(a)
    return made
