"""Measurements: tensors in, numbers out."""
