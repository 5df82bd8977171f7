"""A checkpoint (single file or diffusers folder) into networks, tokenizer and prediction type."""
