"""What backpropagation comes to on the same base and examples in one place: a comparison that a recipe may ask for."""

import math
from collections.abc import Callable
from dataclasses import replace

from .assembly import Experiment, base_weights, indices_of
from .config import Recipe
from .data.batches import Batch, batch_of
from .data.keyed import client_batch_indices
from .errors import NotFinite
from .fed.client import local_round
from .fed.messages import Order, unpack_weights
from .models.evaluation import Evaluation
from .sections import FederationConfig
from .space import copied, copy_into


def backpropagation(experiment: Experiment, advance: Callable[[int], None] = lambda count: None) -> Evaluation:
    """The same base tuned by backpropagation on all training examples: a federation of one client, first order.

    `advance` is called with 1 when a step begins. The experiment's weights are as before when it returns. Cost:
    `baseline.num_steps` steps, each about three forwards, and the memory of backpropagation.
    """
    recipe, site = experiment.recipe, experiment.site
    tuned = copied(site.replica.weights)
    copy_into(site.replica.weights, base_weights(experiment))
    everyone, size = indices_of(experiment.clients), recipe.federation.batch_size

    def batch(client: int, key: int) -> Batch:
        advance(1)
        chosen = everyone[client_batch_indices(key, len(everyone), size)]
        return experiment.prepare(batch_of(experiment.train, chosen))

    one = replace(site, recipe=_baseline_recipe(recipe), num_examples=lambda client: len(everyone), batch=batch)
    try:
        reply = local_round(one, Order(0, 0, site.replica.digest, recipe.baseline.learning_rate))
        copy_into(site.replica.weights, unpack_weights(reply.weights, experiment.space))
        return experiment.evaluate()
    except NotFinite:  # weights that are not finite: the comparison diverged, the run did not
        return Evaluation(math.nan, None, len(experiment.test))
    finally:
        copy_into(site.replica.weights, tuned)


def _baseline_recipe(recipe: Recipe) -> Recipe:
    federation = FederationConfig(
        upload="weights", local_steps=recipe.baseline.num_steps, batch_size=recipe.federation.batch_size
    )
    local = recipe.local.model_copy(update={"order": "first", "optimizer": recipe.baseline.optimizer})
    return recipe.model_copy(update={"federation": federation, "local": local})
