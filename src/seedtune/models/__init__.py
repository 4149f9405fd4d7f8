"""Loaded models, their objectives, heads and exports: the only package that imports transformers and PEFT."""

import logging

# PEFT imports bitsandbytes where it is installed, which then warns of kernels that are not used here.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
