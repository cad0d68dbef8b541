"""A distance between images that objectives are tested with."""

import torch
from torch import Tensor, nn


class Distance(nn.Module):
    """A small learned distance, with parameters, dropout and a count of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.requires_grad_(False).eval()
        self.rows = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.rows += len(x)
        return (self.dropout(self.features(x)) - self.features(y)).square().mean((1, 2, 3))
