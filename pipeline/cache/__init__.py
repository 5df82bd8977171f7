"""Bucketed pictures and captions into shards of latents and text embeddings."""
