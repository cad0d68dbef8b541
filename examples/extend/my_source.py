"""An image source of one's own: pairs of shapes, drawn when they are asked for."""

import numpy as np
from PIL import Image, ImageDraw


class Pairs:
    """Two shapes in random places; the class is what they are. An `ldmae.contracts.ImageSource`."""

    name = "pairs of shapes"
    licence = "drawn by this program"

    def __init__(self, count: int = 200, size: int = 32) -> None:
        self.size = size
        self.classes = ["circles", "squares"]
        self.labels = np.arange(count) % 2  # (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Returns an image: RGB, the same one each time."""
        random = np.random.default_rng(index)
        image = Image.new("RGB", (self.size, self.size), "white")
        draw = ImageDraw.Draw(image)
        for colour in ("navy", "orange"):
            x, y = random.integers(0, self.size // 2, 2).tolist()
            side = int(random.integers(self.size // 4, self.size // 2))
            shape = draw.ellipse if self.labels[index] == 0 else draw.rectangle
            shape((x, y, x + side, y + side), fill=colour)
        return image

    def describe(self, index: int) -> str:
        """Returns what an error message calls the image."""
        return f"pair {index}"

    def fingerprint(self) -> str:
        """Returns what changes whenever the images do."""
        return f"pairs {len(self)} {self.size}"
