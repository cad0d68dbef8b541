"""LightningDiT, flow matching, and the pipeline."""
