"""A federation around one linear layer: sites, servers and engines that misbehave, without a language model."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import torch

from seedtune.config import Recipe
from seedtune.data.keyed import client_batch_indices, keyed_permutation
from seedtune.experiment import PROTOCOLS
from seedtune.fed.client import Replica, Site
from seedtune.fed.messages import Reply, encode_reply
from seedtune.fed.private import PrivateSite
from seedtune.fed.rounds import Server
from seedtune.models.evaluation import Evaluation
from seedtune.privacy.plan import Plan
from seedtune.recipe_text import build, merged
from seedtune.space import bound_weights, copied, digest, model_digest, space_of
from seedtune.zo.meter import Meter, Shape
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturber
from seedtune.zo.trajectory import Header

NUM_EXAMPLES = 12


def recipe(**over) -> Recipe:
    base = {
        "partition": {"num_clients": 4},
        "federation": {"num_rounds": 3, "batch_size": 5},
        "local": {"learning_rate": 0.01, "perturbation_scale": 1e-2, "num_directions": 2},
        "run": {"seed": 11},
    }
    return build(merged(base, over))


def module(width: int = 64) -> torch.nn.Linear:
    """A linear layer with weights of its own random stream, always the same."""
    rng = np.random.default_rng(5)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, width, 2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32)))
    return layer.requires_grad_(False)


def examples(client: int, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([3, client])
    inputs, targets = rng.standard_normal((NUM_EXAMPLES, width)), rng.standard_normal((NUM_EXAMPLES, 2))
    return torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets.astype(np.float32))


def batch_of(recipe: Recipe, client: int, key: int, data: Callable = examples) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = client_batch_indices(key, NUM_EXAMPLES, recipe.federation.batch_size)
    return tuple(tensor[chosen] for tensor in data(client))


def epoch_of(recipe: Recipe, client: int, key: int):
    order, size = keyed_permutation(key, NUM_EXAMPLES), recipe.federation.batch_size
    for first in range(0, NUM_EXAMPLES, size):
        yield tuple(tensor[order[first : first + size]] for tensor in examples(client))


def squared_error(layer: torch.nn.Module) -> Callable:
    dtype = layer.weight.dtype
    return lambda batch: torch.nn.functional.mse_loss(layer(batch[0].to(dtype)).float(), batch[1])


def squared_errors(layer: torch.nn.Module) -> Callable:
    """Of each example by itself."""
    return lambda batch: (layer(batch[0]) - batch[1]).square().mean(1)


def private_site(recipe: Recipe, layer: torch.nn.Module, data: Callable) -> PrivateSite | None:
    def chosen(client: int, places: np.ndarray) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[places] for tensor in data(client))

    plan = Plan.of(recipe)
    return plan and PrivateSite(recipe, plan, chosen, squared_errors(layer))


def site(recipe: Recipe, dtype: torch.dtype = torch.float32, data: Callable = examples, **changed) -> Site:
    """A site with a model of its own. `data`: each client's examples."""
    layer = module().to(dtype)
    space = space_of(layer, ("weight", "bias"))
    header = Header(
        "linear", model_digest(layer).hex(), space.fingerprint, recipe.run.seed, recipe.federation.keys,
        Distribution(recipe.local.distribution), {}, key_pool=recipe.federation.key_pool,
    )  # fmt: skip
    weights = bound_weights(layer, space)
    fields = dict(
        recipe=recipe, header=header, module=layer, perturber=Perturber(layer, space, 2**12),
        replica=Replica(weights, digest(weights)), working=copied(weights),
        batch=lambda client, key: batch_of(recipe, client, key, data), loss=squared_error(layer),
        epoch=lambda client, key: epoch_of(recipe, client, key), num_examples=lambda client: NUM_EXAMPLES,
        shape=lambda batch: Shape(tuple(batch[0].shape), None, None, 0), meter=Meter(),
        private=private_site(recipe, layer, data),
    )  # fmt: skip
    return Site(**(fields | changed))


def without_a_model(
    recipe: Recipe, machine=None, initial=None, own=None, secret=b"", scratch=None, **changed
) -> SimpleNamespace:
    """What `assemble` gives, as far as a run asks for it, around a site of its own."""
    at = site(recipe)
    fields = dict(
        recipe=recipe, header=at.header, site=at, space=at.perturber.space,
        model=SimpleNamespace(base_id="linear", chosen=""), clients=(),
        train=SimpleNamespace(num_truncated=1), test=SimpleNamespace(num_truncated=2),
        task=SimpleNamespace(label_names=("down", "up"), test=()),
        check_forward=lambda: None, evaluate=lambda: Evaluation(1.0, 0.5, 10), evaluate_clients=dict, secret=secret,
        kept=None,
    )  # fmt: skip
    return SimpleNamespace(**(fields | changed))


def server(at: Site) -> Server:
    """A server before round 0 that shares the replica of a site."""
    return Server.at_start(at.recipe, at.header, at.perturber.space, at.replica)


def protocol(recipe: Recipe):
    return PROTOCOLS[recipe.federation.upload]()


def reply(client: int, round_: int = 0, **changed) -> Reply:
    """A usable reply to the default recipe: H = 1, P = 2."""
    fields = dict(
        round=round_, client=client, num_examples=NUM_EXAMPLES, num_forwards=4, loss=0.5,
        scalars=np.array([[0.5 + client, -1.0]], np.float32),
    )  # fmt: skip
    return Reply(**(fields | changed))


class Answers:
    """An engine that says what it was told to: for each client what it answers, a good reply by default."""

    def __init__(self, given: Mapping[int, object] | None = None):
        self.given = given or {}
        self.orders: list[Mapping[int, bytes]] = []

    def exchange(self, orders: Mapping[int, bytes]):
        self.orders.append(dict(orders))
        round_ = len(self.orders) - 1
        for client in reversed(sorted(orders)):
            answer = self.given.get(client, reply(client, round_))
            yield client, encode_reply(answer) if isinstance(answer, Reply) else answer
