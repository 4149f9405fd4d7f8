"""A run's model and data on this machine, made from a server's hello and what the node's owner says.

The recipe comes from the server and is data; where the base and the examples lie is the owner's to say. One bench a
process, whatever number of nodes it serves. It carries no messages.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load as load_tensors

from ..assembly import Experiment, assemble
from ..config import Machine, Recipe
from ..errors import ConfigError, MessageError
from ..fed.answering import Answering
from ..fed.client import Replica
from ..fed.hello import Hello, differences, facts_of
from ..fed.messages import Order
from ..fed.recipe_limits import bounded_recipe
from ..models.source import KNOWN
from ..pinned_inputs import digest_examples, share_inputs
from ..privacy import accounting, rules
from ..privacy.sum_plan import SumPlan
from ..sections import TaskConfig
from .node_ledger import data_digest
from .node_state import FileMemory

if TYPE_CHECKING:
    from ..privacy.identities import Credentials

Make = Callable[..., Experiment]


@dataclass(frozen=True)
class Options:
    """What a node's owner says. clients: those it serves, None: all. model, data: where its base and its own examples
    lie; None: where the recipe says. recipe_paths: whether the recipe, which is the server's, may name files here.
    credentials: for secure sums (`privacy.identities`); None: made up, as in a simulation. max_epsilon: takes part only
    in runs whose clients add noise themselves, as long as all runs on its data stay within it; 0: in any. max_delta: at
    which epsilon is told, whatever the recipe says. min_clients: takes part only in secure sums of so many; 0: in any
    run."""

    clients: tuple[int, ...] | None = None
    model: str | None = None
    data: str | None = None
    machine: Machine = field(default_factory=Machine)
    recipe_paths: bool = False
    credentials: "Credentials | None" = None
    max_epsilon: float = 0.0
    max_delta: float = 1e-5
    min_clients: int = 0


class Bench:
    """recipe: the server's, with the owner's places in it. data: the account of its data (`node_ledger`).

    facts: what the run must share (`fed.hello`). examples: digest of the owner's examples, which stays here; empty
    where they are the run's. base: digest of the untrained weights. refused: why nodes here may
    not take part, empty if they may. arrive: what brings the replica to an order, that of the node at work."""

    def __init__(self, hello: Hello, recipe: Recipe, options: Options, make: Make = assemble):
        own = served(recipe, options.clients) if options.data else None
        self.data = data_digest(Path(options.data) if options.data else None)
        self.experiment = make(recipe, options.machine, _initial(hello), own=own)
        site = self.experiment.site
        shared = share_inputs(recipe, site.header.inputs)
        self.facts = facts_of(site.header, self.experiment.space, self.experiment.task.label_names, shared)
        self.refused = differences(hello.facts, self.facts)
        self.examples = digest_examples(self.experiment.train, self.experiment.clients) if own is not None else ""
        self.base = site.replica.digest
        self.memory = FileMemory(Path())
        self.arrive: Callable[[Order], None] = lambda order: None
        site = replace(site, arrive=lambda order: self.arrive(order), credentials=options.credentials)
        self.answering = Answering(site, self.memory)

    @property
    def replica(self) -> Replica:
        return self.experiment.site.replica


class Benches:
    """The bench of the last run that this process was asked for."""

    def __init__(self, make: Make = assemble):
        self._make = make
        self._key: tuple[bytes, str, Options] | None = None
        self._bench: Bench | None = None

    def bench(self, hello: Hello, options: Options) -> Bench:
        """
        Raises:
            SeedtuneError: a recipe, model, data or client that cannot be used here.
        """
        key = hello.run, hello.recipe, replace(options, clients=options.clients if options.data else None)
        if self._bench is None or self._key != key:
            recipe = _here(bounded_recipe(hello.recipe, "the server's recipe"), options)
            self._key = self._bench = None  # the old model first: two need not fit
            self._bench, self._key = Bench(hello, recipe, options, self._make), key
        return self._bench


def served(recipe: Recipe, clients: tuple[int, ...] | None) -> tuple[int, ...]:
    """
    Raises:
        ConfigError: a client that the run does not have.
    """
    count = recipe.partition.num_clients
    if clients is None:
        return tuple(range(count))
    beyond = [client for client in clients if not 0 <= client < count]
    if beyond or not clients:
        given = f"client {beyond[0]}" if beyond else "no client"
        raise ConfigError(f"this node is to serve {given}: the run has clients 0 to {count - 1}")
    return tuple(sorted(set(clients)))


def _here(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with the owner's places in it.

    Raises:
        ConfigError: nodes bring the data, and this one has none; or the recipe names files that are not its to name.
    """
    if recipe.task.training == "nodes" and not options.data:
        raise ConfigError("task.training = 'nodes', and this node has no data of its own: start it with --data")
    model, task = recipe.model, recipe.task
    if options.model:
        model = model.model_copy(update={"name": options.model, "base": None})
    if options.data:
        task = task.model_copy(update={"path": options.data, "test_path": None})
    if options.max_epsilon:
        _check_private(recipe, options)
    if options.min_clients:
        _check_sums(recipe, options.min_clients)
    if not options.recipe_paths:
        _check_paths([] if options.model else [model.name, model.base], None if options.data else task)
    return recipe.model_copy(update={"model": model, "task": task})


def _check_private(recipe: Recipe, options: Options) -> None:
    """
    Raises:
        ConfigError: a run whose clients add no noise themselves, or one whose rounds may come to be worth more.
    """
    plan, most = rules.checked(recipe), options.max_epsilon
    if plan is None or plan.trusts_server:
        raise ConfigError(
            "this node takes part only in runs with local noise (--max-epsilon), and the server's recipe has none: it "
            "needs privacy.unit and privacy.noise = 'local', or 'shares' among clients of a roster"
        )
    if plan.noise == "shares" and (options.credentials is None or options.credentials.roster is None):
        raise ConfigError(
            "this node adds shares of noise only among clients that it knows (--max-epsilon): without --roster the "
            "server could be all others, and take their shares away again"
        )
    worth = accounting.composed([(plan, plan.num_rounds)], options.max_delta)
    if not worth <= most:
        raise ConfigError(
            f"the run's {plan.num_rounds} rounds are worth epsilon {worth:.4g}, this node takes part up to {most:g} "
            f"(--max-epsilon), both at delta {options.max_delta:g} (--max-delta)"
        )


def _check_sums(recipe: Recipe, least: int) -> None:
    """
    Raises:
        ConfigError: a run without secure sums, or one whose sums may be of fewer clients.
    """
    plan = SumPlan.of(recipe)
    if plan is None or plan.threshold < least:
        found = "has none" if plan is None else f"has sums of {plan.threshold} clients (secure_sum.threshold)"
        raise ConfigError(
            f"this node takes part only in secure sums of at least {least} clients (--min-clients), and the server's "
            f"recipe {found}"
        )


def _check_paths(models: list[str | None], task: TaskConfig | None) -> None:
    """
    Raises:
        ConfigError: the server's recipe names a file of this machine.
    """
    named = [("--model", name) for name in models] + ([("--data", task.path or task.test_path)] if task else [])
    for option, name in named:
        if name and name not in KNOWN and (name.startswith(("/", "~", ".")) or Path(name).exists()):
            raise ConfigError(
                f"the server's recipe names {name} on this machine, which is not its to choose: give {option}, or let "
                "it with --recipe-paths"
            )


def _initial(hello: Hello) -> dict:
    try:
        return load_tensors(hello.initial) if hello.initial else {}
    except Exception as error:  # not only safetensors' own
        raise MessageError(f"a head's start in a hello is not readable: {type(error).__name__}") from None
