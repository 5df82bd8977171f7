"""Checkpoints and prompts into sample grids and report.html: one noise for origin and rounds."""
