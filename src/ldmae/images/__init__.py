"""Images: where they come from, how they are checked and split, and how they become tensors."""
