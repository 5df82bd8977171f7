"""Originals into pictures on an aspect-ratio bucket ladder, stored without loss."""
