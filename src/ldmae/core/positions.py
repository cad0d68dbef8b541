"""The fixed 2-D sine-cosine position table that MAE, DiT and this package's models share."""

# h w token grid, D width of a token

from __future__ import annotations

import torch
from einops import repeat
from torch import Tensor

from ldmae.core.errors import UserError

_MOST_NUMBERS = 2**26
"""In a table; 1024 x 1024 tokens of width 64."""


def sincos_2d(
    width: int,
    height: int,
    columns: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Computes sine-cosine positions of a token grid, row by row.

    A quarter of the width each bears the sine of the column, its cosine, the sine of the row, its cosine, at
    frequencies 10000^(-i / (D/4)) (Vaswani et al. 2017 in each axis; the column comes first, as in MAE).

    Args:
        width: D, the tokens' width, a multiple of 4.
        height: h, rows of the grid.
        columns: w, columns of the grid.
        device: where to put the table; torch's default device where None.
        dtype: torch's default dtype where None; computed in float64 all the same.

    Returns:
        (h*w, D).

    Raises:
        UserError: the table would take gigabytes.
    """
    assert width % 4 == 0, f"sine-cosine positions need a width that 4 divides, got {width}"
    device = torch.empty(0).device if device is None else torch.device(device)
    if device.type != "meta" and height * columns * width > _MOST_NUMBERS:
        raise UserError(
            f"positions of {height}x{columns} tokens of width {width} would take "
            f"{height * columns * width / 2**28:.3g} GiB; take a smaller sample_size, or larger patches"
        )
    # not every accelerator has float64
    where = device if device.type in ("cpu", "cuda", "meta") else torch.device("cpu")
    quarter = width // 4
    exponents = torch.arange(quarter, dtype=torch.float64, device=where) / -quarter
    frequencies = 10000.0**exponents  # (D/4,)

    def along(length: int) -> Tensor:
        angles = torch.arange(length, dtype=torch.float64, device=where)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (h or w, D/2)

    of_column = repeat(along(columns), "w d -> (h w) d", h=height)
    of_row = repeat(along(height), "h d -> (h w) d", w=columns)
    table = torch.cat([of_column, of_row], dim=1)
    return table.to(device=device, dtype=dtype or torch.get_default_dtype())
