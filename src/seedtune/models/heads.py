"""Better starts of a fresh classification head than noise: texts that describe the labels, or a probe.

From a random head, zeroth-order tuning hardly moves: where its head starts matters to an encoder as prompts matter to
a language model. Both starts are values, returned as a dict for `install`. They come from forward passes, which may
differ in their last bits between machines, so whoever wants an exact replay records these values, not the recipe.

Only heads that `load` made are meant (`Tuned.fresh_head`): a checkpoint's own head is not overwritten. Not here: the
random start (`load`), choosing descriptions or examples (`seedtune.data`).
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from ..data.batches import Batch
from ..errors import ModelError
from .encoder import EncoderWithHead
from .load import Tuned
from .objective import labels_of

LOGIT_SCALE = 20.0
"""Logit of a text that equals a description: 1 / temperature of the loss that sentence encoders are trained with
(`scale` in MultipleNegativesRankingLoss of sentence-transformers, as used for all-MiniLM)."""
DESCRIPTION_TOKENS = 128
RIDGES = tuple(10.0**power for power in range(-3, 3))
SCALES = tuple(2.0**power for power in range(0, 7))

HeadValues = dict[str, torch.Tensor]
"""`weight` [num_labels, width] and `bias` [num_labels], float32, on the CPU."""


@torch.no_grad()
def from_labels(model: Tuned, descriptions: Sequence[str]) -> HeadValues:
    """A head whose row c points to the embedding of text c: a zero-shot classifier.

    With e_c the features of description c, row c is LOGIT_SCALE e_c / (|e_c| m), m the mean of all |e_c|, and the bias
    is zero: logits are LOGIT_SCALE times the cosine for texts whose features are as long as the descriptions'.
    Descriptions are cut at 128 tokens. Cost: one forward over them.

    Raises:
        ModelError: no fresh head, not one description a label, or an empty one.
    """
    module = _with_head(model)
    num_labels = len(module.head.weight)
    if len(descriptions) != num_labels:
        raise ModelError(
            f"model.label_descriptions: {len(descriptions)} texts for {num_labels} labels; give one a label, in the "
            "task's order, or set model.head to 'fresh' or 'probe'"
        )
    if empty := [i for i, text in enumerate(descriptions) if not text.strip()]:
        raise ModelError(f"model.label_descriptions: text {empty[0]} is empty; describe the label in a few words")
    longest = min(DESCRIPTION_TOKENS, model.window or DESCRIPTION_TOKENS)
    options = dict(padding=True, padding_side="right", truncation=True, max_length=longest)
    tokens = model.tokenizer(list(descriptions), return_tensors="pt", **options).to(model.device)
    embeddings = module.features(tokens["input_ids"], tokens["attention_mask"]).cpu()
    weight = LOGIT_SCALE / embeddings.norm(dim=1).mean() * normalize(embeddings)
    return {"weight": weight, "bias": torch.zeros_like(weight[:, 0])}


@torch.no_grad()
def from_probe(model: Tuned, batches: Iterable[Batch]) -> HeadValues:
    """A linear probe of the frozen features: ridge regression to the one-hot labels, scaled to be logits.

    The ridge (in units of the mean squared singular value) and the scale are those of `RIDGES` and `SCALES` with the
    least cross-entropy of the leave-one-out predictions, which ridge regression has in closed form. All in float64 on
    the CPU, without any random choice. Cost: one forward a batch, and an SVD of [num_examples, width].

    Raises:
        ModelError: no fresh head, or a label without any example.
    """
    module = _with_head(model)
    num_labels = len(module.head.weight)
    pairs = [(module.features(b.input_ids, b.attention_mask).cpu(), labels_of(b).cpu()) for b in batches]
    labels = torch.cat([labels for _, labels in pairs]) if pairs else torch.zeros(0, dtype=torch.int64)
    if missing := set(range(num_labels)) - set(labels.tolist()):
        raise ModelError(
            f"model.head = 'probe': none of the {len(labels)} training examples given has label {min(missing)}; give "
            "more batches, or set model.head to 'labels'"
        )
    features = torch.cat([rows for rows, _ in pairs]).double()
    weight, bias = _ridge(features, one_hot(labels, num_labels).double(), labels)
    return {"weight": weight.float(), "bias": bias.float()}


@torch.no_grad()
def install(model: Tuned, values: HeadValues) -> None:
    """Copies a start into the head.

    Raises:
        ModelError: no fresh head, or values of another shape.
    """
    head = _with_head(model).head
    for name, parameter in head.named_parameters():
        found = tuple(values[name].shape) if name in values else None
        if found != tuple(parameter.shape):
            raise ModelError(f"head {name} given as {found}, but the model's is {tuple(parameter.shape)}: make it anew")
        parameter.copy_(values[name])


def _with_head(model: Tuned) -> EncoderWithHead:
    if not model.fresh_head or not isinstance(model.module, EncoderWithHead):
        raise ModelError(f"model {model.base_id!r} has no fresh classification head to set: its own is kept as it is")
    return model.module


def _ridge(features: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(weight [C, d], bias [C]) of the best ridge and scale, from features [N, d] and one-hot targets [N, C]."""
    centre, base = features.mean(0), targets.mean(0)
    left, singular, right = torch.linalg.svd(features - centre, full_matrices=False)
    fitted = left.T @ (targets - base)

    def tried() -> Iterator[tuple[float, torch.Tensor, float]]:
        for ridge in RIDGES:
            shrink = singular**2 / (singular**2 + ridge * (singular**2).mean())
            leverage = left**2 @ shrink + 1 / len(labels)
            residual = (targets - base - left @ (shrink[:, None] * fitted)) / (1 - leverage)[:, None]
            for scale in SCALES:
                yield cross_entropy(scale * (targets - residual), labels).item(), shrink, scale

    _, shrink, scale = min(tried(), key=lambda each: each[0])
    inverse = torch.where(singular > 0, shrink / singular.clamp_min(1e-300), 0)
    weight = scale * (right.T @ (inverse[:, None] * fitted)).T
    return weight, scale * base - weight @ centre
