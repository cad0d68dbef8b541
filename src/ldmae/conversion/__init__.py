"""The official checkpoints' keys and ours."""
