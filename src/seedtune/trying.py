"""A model tried out: evaluated on a task's test examples, class by class, or asked to write. Nothing here trains."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import run_store
from .assembly import Experiment, assemble, initial_values, load_replayed, restore
from .config import Machine, Recipe
from .data.forms import FORM_FILE, read_form
from .errors import DataError
from .inspection import opened
from .metrics import scores_of
from .models.evaluation import Evaluation
from .models.generate import generate
from .models.load import Tuned, load
from .models.origin import check_state, model_settings, read_origin
from .models.placement import device_of
from .pinned_inputs import BASE, TEST
from .predictions import score_written
from .recipe_text import build, merged
from .sections import ModelConfig
from .trial import check_rows

_CPU = Machine()
_ONE_PLACE = {"kind": "iid", "num_clients": 1, "heldout_fraction": 0.0}
_ONE_CLIENT = {"cohort_size": 0, "min_replies": 1}
_NOT_PRIVATE = {"unit": "none"}


def evaluated(
    subject: str,
    task: str | None = None,
    *overrides: dict[str, Any],
    machine: Machine = _CPU,
    base: str | None = None,
) -> dict[str, Any]:
    """A run's tuned model, or a model as it is, on a task's test examples.

    `state_digest` is the run's, for the run and for what `replay` wrote of it; None where a merged model no longer has
    the tuned tensors. Any other model has a `base_digest`, as the header of a trajectory on it would.

    `task`: another task than the run's, with none of that one's settings; `overrides` are laid over it all. `base`:
    where a run's base, or that of a folder with an adapter, is found now, if it has moved.

    Cost: loads the model, replays the run, one forward a batch; tasks with reference answers are also generated.

    Raises:
        SeedtuneError: no such run, model or device, or a task that it cannot be put to.
    """
    folder = Path(subject)
    if run_store.is_run(folder):
        state = run_store.trajectory_of(folder)
        moved = {"model": {"name": base}} if base else {}
        recipe = _put(merged(run_store.recipe_of(folder).model_dump(), moved), task, overrides, subject)
        experiment = assemble(recipe, machine, state.header.initial)
        is_its_own = not task and not any("task" in over for over in overrides)
        parts = (*BASE, TEST) if is_its_own else BASE
        restore(experiment, state, lambda round_: run_store.snapshot_of(folder, round_), parts)
        stands = {"rounds": len(state.records), "state_digest": experiment.site.replica.digest.hex()}
    else:
        experiment, stands = _as_it_is(subject, base, task, overrides, machine)
    found = experiment.evaluate()
    return {
        "model": experiment.model.base_id, "task": experiment.recipe.task.name,
        "examples": found.num_examples, **scores_of(found), **score_written(experiment), **_by_class(experiment, found),
        "truncated_examples": experiment.test.num_truncated, **stands,
    }  # fmt: skip


def _as_it_is(
    subject: str, base: str | None, task: str | None, overrides: Sequence[dict[str, Any]], machine: Machine
) -> tuple[Experiment, dict[str, Any]]:
    """A model that is no run, and where it stands: an export at its run's state, any other at the digest of a base.

    Raises:
        ModelError: an export whose weights were altered. DataError: neither a folder nor the request names a task.
    """
    origin = read_origin(subject)
    settings = model_settings(origin) if origin else {}
    values = merged(_values_of_model(subject, base, task, overrides), {"model": settings})
    experiment = assemble(_put(values, task, overrides, subject), machine)
    if origin is None:
        return experiment, {"base_digest": experiment.header.base_digest}
    is_as_exported = not any("model" in over for over in overrides)
    state = check_state(origin, subject, experiment.site.replica.digest.hex(), is_as_exported)
    return experiment, {"rounds": origin.get("rounds"), "state_digest": state}


def _values_of_model(
    subject: str, base: str | None, task: str | None, overrides: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The model, and the task that its folder names where no other is asked for.

    Raises:
        DataError: neither the folder nor the request names a task.
    """
    named = task or next((over["task"]["name"] for over in overrides if "name" in over.get("task", {})), None)
    found = read_form(Path(subject))
    if found and named in (None, found[0].name):
        return {"model": {"name": subject, "base": base, "kind": found[1]}, "task": found[0].model_dump()}
    if named is None and subject != "starter":
        raise DataError(
            f"model {subject!r}: says no task (there is no {FORM_FILE}, which 'seedtune replay' writes for a run): "
            f"name one with --task"
        )
    return {"model": {"name": subject, "base": base}}


def _put(values: dict[str, Any], task: str | None, overrides: Sequence[dict[str, Any]], source: str) -> Recipe:
    """A recipe to evaluate: nobody trains, so all training examples may lie in one place."""
    if task and values.get("task", {}).get("name") != task:
        values = {**values, "task": {"name": task}}
    nobody_trains = {"partition": _ONE_PLACE, "federation": _ONE_CLIENT, "privacy": _NOT_PRIVATE}
    for over in (nobody_trains, *overrides):
        values = merged(values, over)
    return build(values, source)


def _by_class(experiment: Experiment, found: Evaluation) -> dict[str, Any]:
    """`confusion`: how many examples of each class (row) were taken for which (column); `classes`: what follows from
    it. Precision is None for a class that was never predicted, recall for one without examples."""
    if found.confusion is None:
        return {}
    names, counts = experiment.task.label_names, np.array(found.confusion)
    return {"confusion": counts.tolist(), "classes": [_class(name, i, counts, names) for i, name in enumerate(names)]}


def _class(name: str, i: int, counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    right, own, predicted = int(counts[i, i]), int(counts[i].sum()), int(counts[:, i].sum())
    wrong = counts[i] * (np.arange(len(names)) != i)
    return {
        "class": name, "examples": own, "precision": right / predicted if predicted else None,
        "recall": right / own if own else None, "f1": 2 * right / (own + predicted) if own + predicted else None,
        "mistaken_for": names[int(wrong.argmax())] if wrong.any() else None,
    }  # fmt: skip


def written(
    subject: str, prompt: str, max_new_tokens: int = 64, base: str | None = None, machine: Machine = _CPU
) -> dict[str, Any]:
    """What a run's tuned model, or a model as it is, writes after `prompt`: greedily, the most likely token each time.

    `base`: where a run's base, or that of a folder with an adapter, is found now, if it has moved.

    Cost: loads the model, replays the run, one forward over the prompt and one a new token. Reads no task.

    Raises:
        ModelError: no such model, none that writes, or a prompt that is empty or fills its window.
    """
    model, stands = _tuned(subject, base, machine)
    tokens = model.tokenizer(prompt)["input_ids"]
    end = model.tokenizer.eos_token_id
    tokens = tokens[:-1] if len(tokens) > 1 and tokens[-1] == end else tokens  # a tokenizer may close every text
    check_rows(model, max(tokens, default=0))
    (made,) = generate(model, [tokens], max_new_tokens)
    return {"model": model.base_id, **stands, "prompt": prompt, "prompt_tokens": len(tokens), "new_tokens": len(made),
            "text": model.tokenizer.decode(made, skip_special_tokens=True)}  # fmt: skip


def _tuned(subject: str, base: str | None, machine: Machine) -> tuple[Tuned, dict[str, Any]]:
    folder = Path(subject)
    if not run_store.is_run(folder):
        config = ModelConfig(name=subject, base=base)
        device = device_of(machine, config)
        model, stands = load(config, None, initial_values(0)), {}
    else:
        recipe, (state, snapshot) = run_store.recipe_of(folder), opened(folder)
        device = device_of(machine, recipe.model)
        model, _ = load_replayed(state, base or recipe.model.name, None, snapshot)
        stands = {"rounds": len(state.records)}
    model.module.to(device)
    return model, stands
