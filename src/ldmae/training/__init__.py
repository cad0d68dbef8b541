"""One training loop for every objective, with exact resume."""
