"""The sections of a recipe, each by itself: what every setting means, its unit, its default and its range.

What goes together with what is `config.Recipe`'s to check.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from .foreign_text import is_text

MOST_DIRECTIONS = 100_000
"""In one local step."""
MOST_NUMBER = 2**63
MOST_PATH, MOST_PATH_PART = 4096, 255
"""Bytes of a path and of each of its names, as file systems take them."""


class Section(BaseModel):
    """Settings whose types are exact: `true` is no number and "3" is none; an integer does for a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _take_lists(cls, value: Any) -> Any:
        """TOML and JSON know lists only."""
        return tuple(value) if isinstance(value, list) else value

    @field_validator("*")
    @classmethod
    def _check_writable(cls, value: Any) -> Any:
        """What a run keeps of a setting can be written down and read back."""
        if isinstance(value, int) and abs(value) >= MOST_NUMBER:
            raise ValueError(f"give a number below {MOST_NUMBER:.0e}")
        parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
        if not all(is_text(part) for part in parts if isinstance(part, str)):
            raise ValueError("give text without nul bytes and without halves of characters (lone surrogates)")
        return value


def _check_path(name: str) -> str:
    names = [part.encode("utf-8", "replace") for part in Path(name).parts]
    if len(name.encode("utf-8", "replace")) > MOST_PATH or any(len(part) > MOST_PATH_PART for part in names):
        raise ValueError(
            f"a path has at most {MOST_PATH:,} bytes, and each name in it at most {MOST_PATH_PART}: give a shorter one"
        )
    try:
        Path(name).expanduser()
    except RuntimeError:
        raise ValueError("names the home folder of a user who is not here: give the whole path") from None
    return name


PathName = Annotated[str, AfterValidator(_check_path)]
"""A file or folder, or another name that is first looked for on the disk."""


class ModelConfig(Section):
    """Which model, and which of its tensors are tuned."""

    name: PathName = Field(
        "starter",
        description="'starter', 'smollm2-135m-instruct' (a package), a folder, a GGUF file, or a Hugging Face hub id",
    )
    base: PathName | None = Field(
        None, description="where the base of a folder with an adapter is; none: where the adapter says"
    )
    sha256: str = Field(
        "", pattern=r"^([0-9a-f]{64})?$", description="GGUF files: the digest it must have; a run writes it down"
    )
    kind: Literal["auto", "causal", "masked", "classifier"] = Field(
        "auto", description="how the task is put: next token, masked token, or a classification head on an encoder"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="storage of all weights")
    quantisation: Literal["none", "8bit", "4bit"] = Field(
        "none", description="storage of the frozen linear layers under LoRA, through bitsandbytes: 8 bits, or 4 (NF4)"
    )
    trainable: tuple[str, ...] = Field(
        (),
        description="patterns (fnmatch) of the tensors to tune, e.g. '*.mlp.*'; 'behind-layers': those read behind "
        "the last layer alone; empty: all of them",
    )
    adapter: Literal["none", "lora"] = Field("none", description="'lora': tune low-rank adapters through PEFT")
    lora_rank: int = Field(8, ge=1, le=4096, description="rank of each adapter")
    lora_alpha: float = Field(16.0, gt=0, description="the adapter's product is scaled by alpha / rank")
    lora_targets: tuple[str, ...] = Field((), description="names of modules to adapt; empty: PEFT's choice")
    head: Literal["fresh", "labels", "probe"] = Field(
        "labels",
        description="start of a classification head: drawn by key, from embeddings of the label descriptions, or "
        "fitted on features of some training examples",
    )
    label_descriptions: tuple[str, ...] = Field((), description="one text a label, for head = 'labels'")


class TaskConfig(Section):
    """Which examples, and how they are put to the model."""

    name: str = Field("stdlib-topics", description="a known task, or 'custom' with template, columns and files")
    path: PathName | None = Field(None, description="folder (or file) with the task's data; none: built in, or the hub")
    test_path: PathName | None = Field(None, description="custom tasks: file with test rows; none: split off by a hash")
    training: Literal["shared", "nodes"] = Field(
        "shared",
        description="which examples train: the task's, dealt to clients; or each node's own file, and then all of the "
        "task's only test",
    )
    kind: Literal["choice", "text"] = Field("choice", description="custom tasks: pick an answer, or write text")
    template: str | None = Field(None, description="prompt with {column} names in braces")
    answer: str | None = Field(None, description="custom text tasks: template of the text to be learned")
    label_column: str | None = Field(None, description="custom choice tasks: column with the label")
    answers: dict[str, str] = Field({}, description="custom choice tasks: answer word for each label")
    choices_column: str | None = Field(
        None, description="custom choice tasks: column with a row's own list of choices, in place of answers"
    )
    group_column: str | None = Field(None, description="column for the natural partition into clients")
    cut: Literal["body", "left"] = Field(
        "body", description="what a prompt that is too long loses: the end of its longest text, or its start"
    )
    max_tokens: int = Field(0, ge=0, le=1_000_000, description="tokens kept of an example; 0: the task's default")
    shots: int = Field(0, ge=0, description="k: training examples kept of each class, the same for every seed; 0: all")
    max_train: int = Field(0, ge=0, description="training examples kept, the same for every seed; 0: all")
    max_eval: int = Field(0, ge=0, description="test examples kept, the same for every seed; 0: all")


class PartitionConfig(Section):
    """How the training examples are dealt to clients."""

    kind: Literal["iid", "dirichlet", "natural"] = Field(
        "iid", description="alike, skewed by label, or as the data's own groups are"
    )
    num_clients: int = Field(8, ge=1, le=1_000_000, description="N")
    alpha: float = Field(0.5, gt=0, le=1e6, description="Dirichlet concentration; smaller is less alike")
    min_examples: int = Field(1, ge=1, description="a client with fewer is an error")
    heldout_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each client's examples kept from training, to evaluate on client by client",
    )


class FederationConfig(Section):
    """Who takes part in a round and what is exchanged."""

    upload: Literal["weights", "scalars"] = Field(
        "scalars", description="what a client sends: its tuned weights, or its projected gradients"
    )
    keys: Literal["own", "shared"] = Field("own", description="scalars: directions per client, or one set for all")
    key_pool: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="K: every direction of the run is one of so many, drawn by key; 0: each is new",
    )
    aggregation: Literal["mean", "median", "trimmed-mean", "sign-vote"] = Field(
        "mean",
        description="of scalars, beyond the mean with shared keys only: the middle one, the mean without the largest "
        "and smallest, or the sign that most clients see, sent as a bit",
    )
    trimmed_fraction: float = Field(
        0.25, gt=0, lt=0.5, description="trimmed-mean: share of the clients left out at each end"
    )
    num_rounds: int = Field(100, ge=0, le=10_000_000, description="T")
    cohort_size: int = Field(0, ge=0, description="clients asked in a round; 0: all of them")
    min_replies: int = Field(
        1, ge=1, description="fewer usable replies stop the run if a client failed, and move nothing if none did"
    )
    deadline_seconds: float = Field(
        0.0,
        ge=0,
        le=1e7,
        description="between machines: how long a round waits, once min_replies are there, for clients that have not "
        "answered; 0: for all that were there when it began",
    )
    local_steps: int = Field(1, ge=1, le=100_000, description="H: steps that a client makes in a round")
    local_epochs: int = Field(
        0, ge=0, le=100_000, description="passes over a client's examples in a round, in place of local_steps; 0: steps"
    )
    batch_size: int = Field(16, ge=1, le=1_000_000, description="examples a local step")
    weighting: Literal["examples", "equal"] = Field("examples", description="how much a client counts in the mean")
    dropout_rate: float = Field(0.0, ge=0, lt=1, description="chance that a client of the cohort does not answer")


class LocalConfig(Section):
    """What a client does in one local step."""

    order: Literal["zeroth", "first"] = Field("zeroth", description="forward passes only, or backpropagation")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="first order only; zeroth order is plain SGD")
    weight_decay: float = Field(
        0.0, ge=0, le=1, description="first order only: added to the gradient by 'sgd', taken off apart by 'adamw'"
    )
    estimator: Literal["two-point", "one-sided", "split"] = Field(
        "two-point",
        description="central differences (2 P forwards), forward differences (P + 1), or two blocks as [split] says",
    )
    num_directions: int = Field(1, ge=1, le=MOST_DIRECTIONS, description="P: directions a step")
    evaluations: Literal["auto", "one-by-one", "batched"] = Field(
        "auto", description="points of a batch in one forward (changes a loss's last bits): by a rule, one, or all"
    )
    distribution: Literal["rademacher", "gaussian"] = Field("rademacher", description="of a direction's coordinates")
    perturbation_scale: Annotated[float, Field(gt=0, le=10)] | Literal["auto"] = Field(
        1e-3, description="mu, in units of the weights; 'auto': measured before the first round"
    )
    clip: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="largest projected gradient; one beyond it, either way, is cut to it; 0: no limit",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"] = Field(
        1e-4, description="eta, of the first round after warm-up; 'auto': as [auto] measures it"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="how eta goes on: as it is, or falling towards 0 at the last round"
    )
    warmup_rounds: int = Field(0, ge=0, description="rounds over which eta rises linearly first")


class SplitConfig(Section):
    """Two blocks, for local.estimator = 'split': FedSPZO (arXiv 2502.10239) in readings of ours (docs/fedspzo.md)."""

    cut: int = Field(0, ge=0, le=100_000, description="block 1 ends before this layer; 0: half depth")
    num_prefix_directions: int = Field(1, ge=1, le=MOST_DIRECTIONS, description="P1: directions a step for block 1")
    num_suffix_directions: int = Field(
        1, ge=1, le=MOST_DIRECTIONS, description="P2: for block 2; nested: with each of block 1's"
    )
    reading: Literal["nested", "clean-prefix"] = Field(
        "nested", description="both blocks perturbed at once, block 2 anew P2 times; or each block by itself"
    )
    difference: Literal["central", "one-sided"] = Field(
        "central", description="two losses a direction, or one and that of the unmoved model"
    )
    baseline: Literal["none", "leave-one-out"] = Field(
        "none", description="nested: what is taken from a scalar for block 2, nothing or the mean of its siblings"
    )
    rate_ratio: float = Field(1.0, gt=0, le=1e6, description="learning rate of block 2 as a multiple of block 1's")

    @property
    def num_scalars(self) -> int:
        """S: projected gradients a step."""
        counts = self.num_prefix_directions, self.num_suffix_directions
        return counts[0] * counts[1] if self.reading == "nested" else sum(counts)


class AutoConfig(Section):
    """What is measured where `local` says 'auto' (docs/auto.md); a run keeps here what it began with."""

    safety: float = Field(
        0.5, gt=0, le=2, description="share that is taken of the learning rate that lowers the loss most"
    )
    every: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="rounds between two estimates of the rates in the long run; 0: so many that estimates take about a "
        "tenth of the forward passes, four at least",
    )
    per_client: bool = Field(False, description="whether each client's own estimates scale its rate")
    learning_rate: float = Field(0.0, ge=0, le=1e6, description="of the first round; 0: measured before it")
    rate_ratio: float = Field(
        0.0, ge=0, le=1e6, description="learning rate of block 2 over block 1's in the first round; 0: measured"
    )
    perturbation_scale: float = Field(0.0, ge=0, le=10, description="mu; 0: measured before the first round")


class ByzantineConfig(Section):
    """Clients that lie, to try a rule of aggregation: they send other scalars than they found, and other slopes."""

    num_clients: int = Field(0, ge=0, description="how many of them; which follows from the seed")
    attack: Literal["scale", "noise"] = Field(
        "scale", description="their scalars times `factor`; or Gaussian noise, `factor` times as large as they"
    )
    factor: float = Field(
        -1.0, ge=-1e6, le=1e6, description="-1 turns the direction around; beyond: louder than honest"
    )


class PersonaliseConfig(Section):
    """Learning rates of each client's own: eta_i = eta_0 + alpha Phi_i (FedMeZO, arXiv 2402.05926)."""

    policy: Literal["fixed", "random", "round-wise", "five-round", "model-diff"] = Field(
        "fixed",
        description="what Phi_i in [-1, 1] follows: nothing; chance; the training loss of the last round or the last "
        "five; the distance of the client's update from the mean",
    )
    alpha: float = Field(0.5, ge=0, le=1e6, description="how far a client's rate may lie from eta_0")
    alpha_unit: Literal["relative", "absolute"] = Field(
        "relative", description="alpha as a share of eta_0, or as a rate"
    )


class BaselineConfig(Section):
    """The same model tuned by backpropagation on all training examples in one place, for comparison."""

    num_steps: int = Field(0, ge=0, le=1_000_000, description="steps of backpropagation; 0: no comparison")
    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="which optimizer tunes it")
    learning_rate: float = Field(1e-3, gt=0, le=1e6, description="its learning rate, constant")
    whole_model_accuracy: float = Field(
        0.0, ge=0, le=1, description="test accuracy of all tensors tuned so, as measured before; 0: not known"
    )
    whole_model_command: str = Field("", description="the command that measured it")


class PrivacyConfig(Section):
    """Differential privacy: scalars are clipped and noised, and every round is accounted for (docs/privacy.md)."""

    unit: Literal["none", "example", "client"] = Field(
        "none", description="what is protected: nothing, each single example, or all that a client has"
    )
    clip: float = Field(1.0, ge=1e-30, le=1e6, description="C: largest L2 norm of what a unit contributes to a round")
    noise: Literal["central", "local", "shares"] = Field(
        "central",
        description="who adds the noise: a server that is trusted, once; each client to what it sends; or each a share "
        "of it, under secure sums",
    )
    min_honest: int = Field(
        0, ge=0, description="shares: clients of a sum that are counted on to add theirs; 0: secure_sum.threshold"
    )
    noise_multiplier: float = Field(
        0.0, ge=0, le=1e6, description="z: the noise's standard deviation over C; 0: as target_epsilon needs"
    )
    target_epsilon: float = Field(
        0.0, ge=0, le=1e6, description="the run ends before its rounds are worth more; 0: no limit"
    )
    delta: float = Field(1e-5, gt=0, lt=1, description="at which epsilon is accounted; well below 1 over the units")
    sampling: Literal["none", "poisson", "fixed-size"] = Field(
        "none", description="whose secrecy is counted on: nobody's, or that of clients or examples drawn in secret"
    )


class SecureSumConfig(Section):
    """The server learns the sum of what clients send and nothing of one of them (docs/secure-sums.md)."""

    enabled: bool = Field(False, description="whether what clients send is masked")
    threshold: int = Field(
        0,
        ge=0,
        description="t: clients of a cohort that must stay up to the end of a round, more than half of it; 0: two "
        "thirds, rounded up",
    )
    fraction_bits: int = Field(
        30, ge=0, le=44, description="f: numbers are whole multiples of 2^-f, and with n clients within 2^(62 - f) / n"
    )


class RunConfig(Section):
    """What holds for the run as a whole."""

    method: str = Field("custom", description="the name that reports give to the method")
    seed: int = Field(0, ge=0, lt=2**63, description="from which every key follows")
    eval_every: int = Field(10, ge=1, description="rounds between evaluations; the last round is always evaluated")
    patience: int = Field(0, ge=0, description="evaluations without a better loss after which the run ends; 0: never")
    on_surge: Literal["ignore", "stop", "backoff"] = Field(
        "ignore",
        description="where the training loss surges: say so and go on; end the run; or take the rounds back and halve "
        "the learning rate",
    )
    keep_snapshots: Literal["last", "all"] = Field(
        "last", description="upload = 'weights': which rounds' weights stay on disk (the last, and the best)"
    )
    num_threads: int = Field(
        0, ge=0, le=1024, description="threads of a forward pass (changes a loss's last bits); 0: all usable cores"
    )
