"""Federated tuning of language models with forward passes only: seeds and scalars in place of weights."""

from .cores import prepare_openmp

__version__ = "0.1.0"

prepare_openmp()
