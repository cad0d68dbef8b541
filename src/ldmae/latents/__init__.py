"""Cached latents: encoding, shards, statistics."""
