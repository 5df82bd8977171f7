"""Shards and a base checkpoint into one LoRA, resumable at any step.

urushi train RECIPE
"""
