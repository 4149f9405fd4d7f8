"""A run as frozen data: `Recipe` is everything that changes results, `Machine` everything that changes only speed.

A recipe's sections say what each setting means and check its range (`sections`); what goes together is checked here.
How a recipe is written is `recipe_text`; presets (`seedtune.presets`) are partial recipes.
"""

from typing import Literal

from pydantic import Field, model_validator

from .sections import (
    MOST_DIRECTIONS,
    AutoConfig,
    BaselineConfig,
    ByzantineConfig,
    FederationConfig,
    LocalConfig,
    ModelConfig,
    PartitionConfig,
    PersonaliseConfig,
    PrivacyConfig,
    RunConfig,
    Section,
    SecureSumConfig,
    SplitConfig,
    TaskConfig,
)


class Recipe(Section):
    """Everything that determines the result of a run."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    partition: PartitionConfig = PartitionConfig()
    federation: FederationConfig = FederationConfig()
    local: LocalConfig = LocalConfig()
    split: SplitConfig = SplitConfig()
    auto: AutoConfig = AutoConfig()
    personalise: PersonaliseConfig = PersonaliseConfig()
    baseline: BaselineConfig = BaselineConfig()
    byzantine: ByzantineConfig = ByzantineConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    secure_sum: SecureSumConfig = SecureSumConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        federation, partition = self.federation, self.partition
        if federation.cohort_size > partition.num_clients:
            raise ValueError(
                f"federation.cohort_size is {federation.cohort_size} but partition.num_clients is "
                f"{partition.num_clients}: a cohort cannot be larger than the federation"
            )
        if self.local.order == "first" and federation.upload == "scalars":
            raise ValueError(
                "local.order = 'first' needs federation.upload = 'weights': a gradient is not a handful of scalars"
            )
        if federation.keys == "shared" and federation.upload == "weights":
            raise ValueError("federation.keys = 'shared' needs federation.upload = 'scalars'")
        if federation.local_epochs and federation.upload == "scalars":
            raise ValueError(
                "federation.local_epochs needs federation.upload = 'weights': clients with unlike numbers of examples "
                "would send unlike numbers of scalars"
            )
        self._check_scalars()
        if self.is_split:
            self._check_split()
        self._check_alpha()
        self._check_training()
        self._check_auto()
        cohort = federation.cohort_size or partition.num_clients
        if federation.min_replies > cohort:
            raise ValueError(f"federation.min_replies is {federation.min_replies} but a round asks {cohort} clients")
        return self

    @property
    def is_private(self) -> bool:
        """Whether what is learned is differentially private."""
        return self.privacy.unit != "none"

    @property
    def is_split(self) -> bool:
        """Whether local steps perturb the model in two blocks."""
        return self.local.order == "zeroth" and self.local.estimator == "split"

    @property
    def num_scalars(self) -> int:
        """Projected gradients of one local step, one a direction."""
        return self.split.num_scalars if self.is_split else self.local.num_directions

    @property
    def is_one_sided(self) -> bool:
        """Whether a local step of forward passes evaluates the loss at the weights themselves."""
        return (self.split.difference if self.is_split else self.local.estimator) == "one-sided"

    @property
    def is_rate_auto(self) -> bool:
        """Whether learning rates follow from what rounds measure."""
        return self.local.learning_rate == "auto"

    @property
    def mu(self) -> float:
        """The perturbation scale; 0 where it is still to be measured."""
        scale = self.local.perturbation_scale
        return self.auto.perturbation_scale if scale == "auto" else scale

    @property
    def first_rate(self) -> float:
        """The learning rate, or that of the first round; 0 where it is still to be measured."""
        rate = self.local.learning_rate
        return self.auto.learning_rate if rate == "auto" else rate

    @property
    def rate_ratio(self) -> float:
        """Block 2's learning rate over block 1's, or that of the first round."""
        return (self.auto.rate_ratio or 1.0) if self.is_rate_auto else self.split.rate_ratio

    def _check_auto(self) -> None:
        """What is measured can be, and is told to nobody who may not know it."""
        local = self.local
        asked = [name for name in ("learning_rate", "perturbation_scale") if getattr(local, name) == "auto"]
        if not asked:
            return
        if local.order == "first":
            raise ValueError(f"local.{asked[0]} = 'auto' needs local.order = 'zeroth': give backpropagation a number")
        if self.is_private or self.secure_sum.enabled:
            section = "privacy.unit = 'none'" if self.is_private else "secure_sum.enabled = false"
            raise ValueError(
                f"local.{asked[0]} = 'auto' needs {section}: it follows from losses that clients would tell"
            )
        if self.auto.per_client and self.federation.aggregation == "sign-vote":
            raise ValueError(
                "auto.per_client needs another federation.aggregation than 'sign-vote': a vote has no rate"
            )

    def _check_split(self) -> None:
        """The directions are those of [split], few enough, and a baseline has something to take away."""
        split = self.split
        if self.local.num_directions != 1:
            raise ValueError(
                f"local.num_directions is {self.local.num_directions} but local.estimator = 'split' takes its "
                "directions from split.num_prefix_directions and split.num_suffix_directions: set it to 1"
            )
        if split.num_scalars > MOST_DIRECTIONS:
            raise ValueError(f"[split] asks for {split.num_scalars} directions a step: at most {MOST_DIRECTIONS}")
        if self.federation.aggregation == "sign-vote":
            raise ValueError(
                "federation.aggregation = 'sign-vote' needs local.estimator = 'two-point' or 'one-sided': the sign of "
                "what both blocks did is not the sign of one"
            )
        if split.baseline == "leave-one-out" and (split.reading != "nested" or split.num_suffix_directions < 2):
            raise ValueError(
                "split.baseline = 'leave-one-out' needs split.reading = 'nested' and split.num_suffix_directions of at "
                "least 2: it takes away what directions of block 2 share through one direction of block 1"
            )

    def _check_scalars(self) -> None:
        """What is done to projected gradients fits what is sent."""
        federation, is_vote = self.federation, self.federation.aggregation == "sign-vote"
        if federation.key_pool and federation.upload == "weights":
            raise ValueError("federation.key_pool needs federation.upload = 'scalars'")
        if federation.aggregation != "mean" and federation.keys == "own":
            raise ValueError(
                f"federation.aggregation = {federation.aggregation!r} needs federation.keys = 'shared': scalars can be "
                "set against one another only where all clients try the same directions"
            )
        if federation.aggregation in ("median", "trimmed-mean", "sign-vote") and federation.weighting != "equal":
            raise ValueError(
                f"federation.aggregation = {federation.aggregation!r} needs federation.weighting = 'equal': how many "
                "examples a client has is its own claim"
            )
        if is_vote and self.personalise.policy != "fixed":
            raise ValueError(
                "federation.aggregation = 'sign-vote' needs personalise.policy = 'fixed': a vote has no learning rate"
            )
        if self.local.clip and (is_vote or self.local.order == "first"):
            raise ValueError(
                "local.clip needs local.order = 'zeroth' and another federation.aggregation than 'sign-vote': it cuts "
                "projected gradients, and a vote is none"
            )
        if self.local.weight_decay and self.local.order == "zeroth":
            raise ValueError(
                "local.weight_decay needs local.order = 'first': what moves weights in forward-only steps is scalars "
                "times directions"
            )
        if self.byzantine.num_clients and federation.upload == "weights":
            raise ValueError("byzantine.num_clients needs federation.upload = 'scalars': what is falsified are scalars")
        if self.byzantine.num_clients > self.partition.num_clients:
            raise ValueError(
                f"byzantine.num_clients is {self.byzantine.num_clients} but partition.num_clients is "
                f"{self.partition.num_clients}"
            )

    def _check_training(self) -> None:
        """What trains where only nodes have it is not needed anywhere else."""
        needs = {
            "partition.heldout_fraction": self.partition.heldout_fraction > 0,
            "baseline.num_steps": self.baseline.num_steps > 0,
        }
        for name, is_set in needs.items():
            if is_set and self.task.training == "nodes":
                raise ValueError(
                    f"{name} needs task.training = 'shared': what nodes train on is nowhere else to be seen"
                )

    def _check_alpha(self) -> None:
        """A client's rate stays positive, whatever its Phi."""
        personalise, rate = self.personalise, self.local.learning_rate
        if personalise.policy != "fixed" and personalise.alpha_unit == "absolute" and rate == "auto":
            raise ValueError(
                "personalise.alpha_unit = 'absolute' needs local.learning_rate as a number: use 'relative'"
            )
        limit = rate if personalise.alpha_unit == "absolute" and rate != "auto" else 1.0
        if personalise.policy != "fixed" and personalise.alpha >= limit:
            raise ValueError(
                f"personalise.alpha is {personalise.alpha:g} ({personalise.alpha_unit}), which lets a client's "
                f"learning rate fall to 0: it must be less than {limit:g}"
            )


class Machine(Section):
    """What changes speed and memory; of a result no more than the last bits of losses, by `device`."""

    kernel: Literal["auto", "compiled", "torch"] = "auto"
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:[0-9]{1,3})?)$", description="of the model and the batches")
    scratch_bytes: int = Field(2**22, ge=2**12, description="largest piece of perturbed weights; a pair takes two")
    keep_activations: Literal["auto", "memory", "none"] = Field(
        "auto", description="outputs of frozen layers: in memory and then on disk, in memory alone, or computed anew"
    )
    activation_memory: int = Field(2**30, ge=0, description="bytes of kept outputs in memory")
