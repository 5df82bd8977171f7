"""A build recipe into LoRA_1..K, strengths, checkpoints and decisions: the heart of the program."""
