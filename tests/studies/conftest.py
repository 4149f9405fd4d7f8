"""Requests for studies over the tiny model and table."""

import copy
from collections.abc import Callable

import pytest
import tiny_runs
from small_studies import STUDY

from seedtune.recipe_text import merged
from seedtune.studies.plan import Request


@pytest.fixture
def request_of(tiny_model, tiny_table) -> Callable[..., Request]:
    """Makes a request for a study, by default two cases of three rounds on one seed; sections are laid over it."""

    def make(study=STUDY, num_seeds=1, quick=False, **over) -> Request:
        values = copy.deepcopy(tiny_runs.values(tiny_model, tiny_table))
        del values["run"]["num_threads"]
        values = merged(
            values,
            {
                "model": {"trainable": []},
                "task": {"max_eval": 0},
                "federation": {"local_steps": 1},
                "run": {"eval_every": 1},
            },
        )
        return Request(study, quick=quick, settings=merged(values, over), num_seeds=num_seeds)

    return make
