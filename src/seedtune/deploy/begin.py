"""A run's folder before the server app opens it: a new run's recipe, or the check that the run there is the one asked
for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from .. import presets, run_store
from ..config import Recipe
from ..errors import DeployError
from ..recipe_text import assignment


def begin(
    folder: Path,
    recipe: str | None,
    method: str | None,
    settings: Sequence[str],
    say: Callable[[str], None] = lambda note: None,
) -> None:
    """Leaves `folder` with a run that can be gone on with: the one that is there, or one of `recipe` with no round yet.

    `say` is called with what a recipe does not hand on (`presets.composed`).

    Raises:
        DeployError: no recipe and no run; a run of another recipe. ConfigError, RunStoreError: as for any run.
    """
    given = None
    if recipe or method or settings:
        from ..experiment import resolved  # libraries that a run that goes on does without

        given = resolved(presets.composed(recipe, method, *(assignment(text) for text in settings), say=say))
    if run_store.is_run(folder):
        if given is not None:
            _check_same(folder, run_store.recipe_of(folder), given)
    elif given is None:
        raise DeployError(f"run folder {folder}: holds no run, and no recipe was given to begin one")
    else:
        with run_store.create(folder, needed_bytes=run_store.log_bytes(given)) as store:
            store.reserve(given)


def _check_same(folder: Path, held: Recipe, given: Recipe) -> None:
    for section, values in held.model_dump().items():
        for key, value in values.items():
            asked = getattr(getattr(given, section), key)
            if asked != value:
                raise DeployError(
                    f"run folder {folder}: holds a run with {section}.{key} = {value!r}, and {asked!r} was asked for: "
                    f"choose another with --out, or leave the recipe out to go on with this run"
                )
