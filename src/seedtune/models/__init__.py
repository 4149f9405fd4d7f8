"""Loaded models, their objectives, heads and exports: the only package that imports transformers and PEFT."""
