"""The studies of FedMeZO (Ling et al., KDD 2024, arXiv 2402.05926), and those that its reviewers ask for.

What a study keeps fixed is the recipe `study`: local two-point steps with keys of each client's own, averaged. Numbers
here are multiples of that recipe's, except where the paper's own values are meant. The paper's runs are of a model of
3 B parameters over 500 rounds: what transfers is the comparison, not the loss.
"""

from . import findings
from .findings import against, pairs, trend
from .study import Axis, Case, Study, View

FIRST_ORDER = {
    "local": {"order": "first", "optimizer": "sgd"},
    "federation": {"upload": "weights"},
    "run": {"method": "fedavg"},
}
FORWARD, BACKWARD = "forward only", "backpropagation"
BEST = "best rate"

CONVERGENCE = Study(
    "fedmezo-convergence",
    "Do forward passes alone come as far as backpropagation, round by round?",
    "FedMeZO, Figure 1: against FedAvg with SGD on the same adapter, data and learning rate; and each at its best rate",
    (
        Case(f"{FORWARD}, same rate"),
        Case(f"{BACKWARD}, same rate", FIRST_ORDER),
        Case(f"{FORWARD}, {BEST}", rates=(0.1, 0.3, 1.0, 3.0)),
        Case(f"{BACKWARD}, {BEST}", FIRST_ORDER, rates=(1.0, 3.0, 10.0, 30.0, 100.0)),
    ),
    pairs((f"{FORWARD}, same rate", f"{BACKWARD}, same rate"), (f"{FORWARD}, {BEST}", f"{BACKWARD}, {BEST}")),
    (View("rounds"), View("flops")),
)

PERTURBATION_SCALE = Study(
    "perturbation-scale",
    "How much does the perturbation scale mu matter?",
    "FedMeZO, Figure 2: mu in {5e-3, 1e-3, 2e-4}; and the recipe's own",
    (
        *(Case("mu = {x}", {"local": {"perturbation_scale": mu}}) for mu in (2e-4, 1e-3, 5e-3)),
        Case("mu = {x}"),
    ),
    trend("mu"),
    (View("rounds"), View("axis")),
    axis=Axis("local.perturbation_scale", "mu", "perturbation scale mu (units of the weights)"),
)

LOCAL_STEPS = Study(
    "local-steps",
    "What do more local steps H bring in as many rounds?",
    "FedMeZO, Figure 3: H in {10, 30, 50}, here 1/3, 1 and 5/3 of the recipe's H",
    tuple(Case("H = {x}", times={"federation.local_steps": factor}) for factor in (1 / 3, 1.0, 5 / 3)),
    trend("H"),
    (View("rounds"), View("axis")),
    axis=Axis("federation.local_steps", "H", "local steps a round, H"),
)

STRATEGIES = ("fixed", "random", "round-wise", "five-round", "model-diff")
RATE_STRATEGIES = Study(
    "rate-strategies",
    "Which signal should set each client's own learning rate?",
    "FedMeZO, Figure 4: five strategies, alpha half of eta_0, on clients with unlike labels",
    tuple(Case(policy, {"personalise": {"policy": policy}}) for policy in STRATEGIES),
    against("fixed"),
    (View("rounds"), View("cases")),
    base={"personalise": {"alpha": 0.5, "alpha_unit": "relative"}, "partition": {"kind": "dirichlet", "alpha": 0.5}},
)

LOSS_SURGE = Study(
    "loss-surge",
    "From which learning rate on does the loss surge, and when?",
    "FedMeZO, Figure 5: eta in {1, 3, 5, 10} x 1e-5, here times the recipe's rate",
    tuple(Case("eta = {x}", times={"local.learning_rate": factor}) for factor in (1.0, 3.0, 5.0, 10.0)),
    findings.surges,
    (View("rounds", log_y=True), View("axis", log_y=True)),
    base={"partition": {"kind": "iid"}, "local": {"schedule": "constant"}},
    fixed={"run": {"on_surge": "ignore"}},
    axis=Axis("local.learning_rate", "eta", "learning rate eta"),
)

HETEROGENEITY = Study(
    "heterogeneity",
    "How much do clients with unlike data slow it down?",
    "FedMeZO, Figure 6 (IID, Dirichlet 0.5, by category); the sweep of Dirichlet's alpha is one its reviewers ask for",
    (
        Case("IID", {"partition": {"kind": "iid"}}),
        *(Case(f"Dirichlet {a:g}", {"partition": {"kind": "dirichlet", "alpha": a}}) for a in (10.0, 1.0, 0.5, 0.1)),
        Case("natural groups", {"partition": {"kind": "natural"}}),
    ),
    against("IID"),
    (View("rounds"), View("cases")),
)

CLIENTS = Study(
    "clients",
    "What do more clients bring in as many rounds?",
    "FedMeZO, Figure 7 (3 and 8 clients) and its tables (3 to 40)",
    tuple(Case("N = {x}", {"partition": {"num_clients": count}}) for count in (3, 8, 20, 40)),
    trend("N"),
    (View("rounds"), View("axis")),
    fixed={"federation": {"cohort_size": 0}},
    axis=Axis("partition.num_clients", "N", "clients, N, all of them in every round"),
)

BATCH = Study(
    "batch",
    "What do larger batches bring in as many rounds?",
    "FedMeZO, tables: batch 1, 3 and 5",
    tuple(Case("batch {x}", {"federation": {"batch_size": size}}) for size in (1, 3, 5)),
    trend("the batch"),
    (View("rounds"), View("axis")),
    axis=Axis("federation.batch_size", "batch", "examples a local step"),
)

RANKS = (8, 16, 32, 64, 128)
LORA = {"model": {"adapter": "lora", "trainable": ()}}
LORA_RATE = {"local": {"learning_rate": 1.5e-3}}
LORA_RATES = (1 / 3, 1.0, 3.0)
"""An adapter has hundreds of times the parameters of the norm that the recipe tunes, and the stable rate falls with
their number: so the starter's adapter begins at a rate of its own, and each rank chooses around it."""
LOWEST = {"local.learning_rate": LORA_RATES[0]}
"""For uploads of weights, whose bytes are what is asked: no rate changes them."""


def _rank(rank: int, upload: str, rate: str, **more) -> Case:
    over = {"model": {"lora_rank": rank, "lora_alpha": 2.0 * rank}, "federation": {"upload": upload}}
    return Case(f"rank {{x}}, {upload}", over, series=f"{upload}, {rate}", **more)


LORA_RANK = Study(
    "lora-rank",
    "What does a higher LoRA rank bring, and what does it cost to send?",
    "asked for by FedMeZO's reviewers: rank against communication (the paper: rank 128, alpha 256)",
    (
        *(_rank(rank, "scalars", BEST, rates=LORA_RATES) for rank in RANKS),
        *(_rank(rank, "weights", "lowest rate, one seed", times=LOWEST, most_seeds=1) for rank in RANKS),
    ),
    findings.ranks,
    (View("axis"), View("axis", y="bytes_up", log_y=True)),
    base=LORA_RATE,
    fixed=LORA,
    axis=Axis("model.lora_rank", "rank", "LoRA rank (alpha is twice the rank)"),
)

SINGLE_CLIENT = Study(
    "single-client",
    "On one client and at one learning rate, how far behind backpropagation is a forward-only step?",
    "asked for by FedMeZO's reviewers: N = 1, so that nothing but the gradient differs",
    (Case(FORWARD), Case(BACKWARD, FIRST_ORDER)),
    pairs((FORWARD, BACKWARD)),
    (View("rounds"), View("flops")),
    fixed={"partition": {"kind": "iid", "num_clients": 1}, "federation": {"cohort_size": 0}},
)

STUDIES = (
    CONVERGENCE, PERTURBATION_SCALE, LOCAL_STEPS, RATE_STRATEGIES, LOSS_SURGE, HETEROGENEITY, CLIENTS, BATCH, LORA_RANK,
    SINGLE_CLIENT,
)  # fmt: skip
