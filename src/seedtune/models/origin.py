"""`seedtune.json`: where an exported model comes from, beside its weights.

| key | what |
|---|---|
| state_digest | of the tuned tensors that it was written from, as the run and its trajectory have it |
| base, rounds | the base's id, and after how many rounds |
| model | how its tuned tensors are found again: the settings of the run's [model], but for its name |
| merged | a LoRA adapter was added to the base's weights, so that the tuned tensors are not in the folder |
| form | the run's task (`seedtune.data.forms`) |

Not here: what a digest is (`seedtune.space.digest`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.forms import FORM_FILE
from ..errors import ModelError

ORIGIN_FILE = FORM_FILE
_KEPT = ("kind", "dtype", "trainable")
"""Settings of [model] with which a folder is loaded as the run had it."""


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write the file into a folder that an export is making."""
    (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def read_origin(name: str) -> Mapping[str, Any] | None:
    """Return what an exported folder says of itself; None where it is none.

    Raises:
        ModelError: the file is there and cannot be used.
    """
    path = Path(name).expanduser() / ORIGIN_FILE
    if not path.is_file():
        return None
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        origin = None
    if not isinstance(origin, dict) or not isinstance(origin.get("model"), dict):
        raise ModelError(f"model {name!r}: its {ORIGIN_FILE} is damaged: delete it, or export the model again")
    return origin


def model_settings(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of [model] with which the tuned tensors are those of the run; none for an adapter."""
    settings = origin["model"]
    if settings.get("adapter", "none") != "none":
        return {name: settings[name] for name in ("kind", "dtype") if name in settings}
    return {name: settings[name] for name in _KEPT if name in settings}


def check_state(origin: Mapping[str, Any], name: str, found: str, is_as_exported: bool) -> str | None:
    """Return the state digest of a loaded export; None where its tensors are not those that the run tuned.

    Args:
        found: the digest of the tensors that were loaded as tuned ones.
        is_as_exported: it was loaded with `model_settings` alone.

    Raises:
        ModelError: the weights were altered since they were written.
    """
    if found == origin.get("state_digest"):
        return found
    if is_as_exported and origin["model"].get("adapter", "none") == "none":
        raise ModelError(
            f"model {name!r}: {ORIGIN_FILE} says state digest {origin.get('state_digest')}, its weights have {found}: "
            f"they were altered since they were written; delete {ORIGIN_FILE} to use them as a model of their own"
        )
    return None
