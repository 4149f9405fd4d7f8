"""Outputs of frozen layers, computed once a sequence for the whole run and kept.

Layers before the first tuned tensor give the same output whenever they see a sequence again: in every local step, at
every perturbed point, in every evaluation. `KeptActivations` computes them once and puts them into batches
(`Batch.frozen`), whose forwards then begin behind them. Where nothing but the last norm and the head lies behind,
only scored positions are kept, and a batch shrinks to these.

Guarantee: the values do not depend on the batch, on the other sequences, or on whether and where they were kept. Each
sequence is computed in a group of fixed shape: as many sequences as `GROUP_TOKENS` hold, each padded to the next
multiple of `STEP` tokens. That neither a row's place nor its neighbors matter is tried
out for each shape; where they do, sequences are computed alone. A group's free rows take sequences
that the run will need (`expect`), so that nothing is computed in vain.

Entries are found by the sequence's tokens, so clients and test examples that share one share its output. Does not
choose what is tuned, and knows no example of a client from another's.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..data.batches import Batch, FrozenOutputs
from ..errors import ModelError
from ..models.blocks import Cut, num_layers
from ..models.frozen import compute_frozen, install
from ..models.load import Tuned
from ..models.objective import answer_logits, scores
from ..models.source import Network
from .activation_store import ActivationStore
from .meter import FROZEN, Meter, Shape

GROUP_TOKENS = 256
"""Of a group: larger ones were hardly faster on a CPU (SmolLM2-135M in float32, 32 tokens a sequence: 94 ms each in
groups of 8, 90 in groups of 16 and of 32, 167 alone; medians of three)."""
STEP = 8
"""Tokens by which the lengths of groups differ. A sequence has at least one masked position in its group, since models
run other attention kernels where none is masked."""
MOST_EXPECTED = 100_000
"""Sequences that are remembered to fill groups with."""


@dataclass(frozen=True)
class Sequence:
    """One row of a batch: its tokens, int64 [L], and the positions whose outputs are needed, int64 [P]."""

    tokens: np.ndarray
    positions: np.ndarray

    @property
    def key(self) -> bytes:
        return self.tokens.tobytes() + b"@" + self.positions.tobytes()


@dataclass(frozen=True)
class GroupShape:
    """A group of `num_rows` sequences of `num_tokens` tokens; `is_full`: no position is masked."""

    num_rows: int
    num_tokens: int
    is_full: bool

    @property
    def metered(self) -> Shape:
        """The shape by which operations of a group are counted."""
        return Shape((self.num_rows, self.num_tokens), None, None, 0)


_Pool = defaultdict[GroupShape, dict[bytes, Sequence]]
"""Sequences expected together, by the shape of their group."""


@dataclass
class Savings:
    """Operations that frozen layers took, and would have taken had every evaluation computed them."""

    num_sequences: int = 0
    flops_spent: int = 0
    flops_replaced: int = 0

    def note_use(self, num_flops: int) -> None:
        self.flops_replaced += num_flops


class KeptActivations:
    """The frozen layers of a model, and what they gave so far.

    Args:
        model: only its tuned tensors may move.
        cut: behind the frozen layers, as `find_frozen` gives it.
        store: where outputs are kept.
        meter: counts the operations of groups.

    Attributes:
        cut: behind the frozen layers. num_layers: how many these are.
        savings: what was computed and what was spared so far.
        keeps_positions: scored positions alone are kept, in place of whole sequences.

    Raises:
        ModelError: the layers give something else than hidden states, or a trial on a few tokens that begins behind
            them gives something else than the whole model.

    Cost: a few forwards on 12 tokens.
    """

    def __init__(self, model: Tuned, cut: Cut, store: ActivationStore, meter: Meter):
        self.model, self.num_layers, self.savings = model, cut.k, Savings()
        self.store = ActivationStore(0, on_disk=False)  # the trial's tokens are of no use to a run
        self.cut, self._meter = cut, meter
        self._sample = replace(cut, k=1, layers=cut.layers[:1]) if _are_alike(cut.layers) else cut
        self._usable: dict[GroupShape, bool] = {}
        self._expected: list[_Pool] = []
        self.keeps_positions = False
        self._group_tokens = STEP  # the trial's few sequences fill no larger group
        self._try()
        self._group_tokens, self.store, self.savings = GROUP_TOKENS, store, Savings()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with `frozen` filled in; its sequences may shrink to their scored positions.

        Cost: the frozen layers for sequences that are not kept.
        """
        before = self.savings.flops_spent
        sequences = self._sequences(batch)
        values = pad_sequence(self._outputs(sequences), batch_first=True).to(self.model.device)
        shorter = self._shrunk(batch, sequences) if self.keeps_positions else batch
        spent, each = self.savings.flops_spent - before, sum(self._flops_each(s) for s in sequences)
        return replace(shorter, frozen=FrozenOutputs(values, self.num_layers, each, spent, self.savings.note_use))

    def expect(self, batches: Iterable[Batch]) -> int:
        """Remember the sequences of batches to come that are not kept yet; return the bytes that keeping these takes.

        Sequences that were expected together fill each other's groups, so that training pays for its own.
        """
        known: dict[bytes, int] = {}
        pool: _Pool = defaultdict(dict)
        for sequence in chain.from_iterable(map(self._sequences, batches)):
            if sequence.key in self.store:
                continue
            if sequence.key not in known and len(known) < MOST_EXPECTED:
                pool[self._shape(sequence)][sequence.key] = sequence
            known[sequence.key] = len(sequence.positions)
        self._expected.append(pool)
        return sum(known.values()) * self._width * self._dtype.itemsize

    @torch.no_grad()
    def compute_expected(self, advance: Callable[[int], None] = lambda count: None) -> int:
        """Compute what is expected and not kept yet; return the operations that it took.

        `advance` is called with the number of sequences of each group.
        """
        before = self.savings.flops_spent
        for shape, waiting in [(shape, waiting) for pool in self._expected for shape, waiting in pool.items()]:
            while waiting and self.store.has_room:
                group = [waiting.pop(next(iter(waiting))) for _ in range(min(shape.num_rows, len(waiting)))]
                for sequence, values in zip(group, self._computed(shape, group), strict=True):
                    self.store.put(sequence.key, values)
                advance(len(group))
        return self.savings.flops_spent - before

    @property
    def num_expected(self) -> int:
        """Sequences that are expected and not kept yet."""
        return sum(len(waiting) for pool in self._expected for waiting in pool.values())

    def _sequences(self, batch: Batch) -> list[Sequence]:
        """The rows of a batch without their padding."""
        tokens, lengths = batch.input_ids.cpu().numpy(), batch.attention_mask.sum(1).tolist()
        rows, columns = batch.rows.cpu().numpy(), batch.columns.cpu().numpy()
        return [
            Sequence(tokens[row, :length], columns[rows == row] if self.keeps_positions else np.arange(length))
            for row, length in enumerate(lengths)
        ]

    def _shrunk(self, batch: Batch, sequences: list[Sequence]) -> Batch:
        """The batch of the scored positions alone: right-padded again, its columns counted anew."""
        ids = [torch.from_numpy(s.tokens[s.positions]) for s in sequences]
        columns = torch.cat([torch.arange(len(own)) for own in ids])
        shorter = replace(
            batch,
            input_ids=pad_sequence(ids, batch_first=True),
            attention_mask=pad_sequence([torch.ones_like(own) for own in ids], batch_first=True),
            columns=columns,
        )
        return shorter.to(self.model.device)

    # Computing

    def _outputs(self, sequences: list[Sequence]) -> list[torch.Tensor]:
        """[P, d] of each sequence, kept or computed."""
        found = {sequence.key: self.store.get(sequence.key) for sequence in sequences}
        missing = {s.key: s for s in sequences if found[s.key] is None}
        for shape, group in self._groups(missing):
            for sequence, values in zip(group, self._computed(shape, group), strict=True):
                self.store.put(sequence.key, values)
                found[sequence.key] = values
        return [found[sequence.key] for sequence in sequences]  # type: ignore[misc]  # none is missing any more

    def _groups(self, missing: dict[bytes, Sequence]) -> Iterator[tuple[GroupShape, list[Sequence]]]:
        """The missing sequences by shape; free rows of a group are filled with expected ones."""
        by_shape = defaultdict(list)
        for sequence in missing.values():
            by_shape[self._shape(sequence)].append(sequence)
        for shape, waiting in by_shape.items():
            others: dict[bytes, Sequence] = {}
            for sequence in waiting:
                others = self._taken(shape, sequence) or others
            for start in range(0, len(waiting), shape.num_rows):
                group = waiting[start : start + shape.num_rows]
                while self.store.has_room and others and len(group) < shape.num_rows:
                    group.append(others.pop(next(iter(others))))
                yield shape, group

    def _taken(self, shape: GroupShape, sequence: Sequence) -> dict[bytes, Sequence]:
        """Forget an expected sequence; return those of its shape that were expected with it."""
        for pool in self._expected:
            if pool[shape].pop(sequence.key, None):
                return pool[shape]
        return {}

    def _computed(self, shape: GroupShape, group: list[Sequence]) -> list[torch.Tensor]:
        """What the frozen layers give for a group: [P, d] each. Free rows repeat the first sequence."""
        filled = [*group, *[group[0]] * (shape.num_rows - len(group))]
        values = self._run(shape, [sequence.tokens for sequence in filled], self.cut)
        self.savings.num_sequences += len(group)
        return [row[torch.from_numpy(s.positions).to(row.device)].cpu() for s, row in zip(group, values, strict=False)]

    def _run(self, shape: GroupShape, rows: list[np.ndarray], cut: Cut) -> torch.Tensor:
        """The output of the last layer before `cut` for a group of tokens, [num_rows, num_tokens, d]; counted."""
        ids = torch.zeros(shape.num_rows, shape.num_tokens, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.from_numpy(tokens)
            mask[row, : len(tokens)] = 1
        device = self.model.device
        call = partial(self.model.module, input_ids=ids.to(device), attention_mask=mask.to(device))
        (values, _), flops = self._meter.counted(shape.metered, (FROZEN, cut.k), partial(compute_frozen, cut, call))
        self.savings.flops_spent += flops
        return values

    def _flops_each(self, sequence: Sequence) -> int:
        """Operations of a sequence, as its group spends them."""
        shape = self._shape(sequence)
        return (self._meter.known(shape.metered, (FROZEN, self.num_layers)) or 0) // shape.num_rows

    # Shapes

    def _shape(self, sequence: Sequence) -> GroupShape:
        """The shape of a sequence's group, which follows from its length alone."""
        length, window = len(sequence.tokens), self.model.window
        num_tokens = (length // STEP + 1) * STEP
        if window and num_tokens > window:
            num_tokens = max(length, window)
        wide = GroupShape(max(1, self._group_tokens // num_tokens), num_tokens, length == num_tokens)
        return wide if self._is_usable(wide) else replace(wide, num_rows=1)

    def _is_usable(self, shape: GroupShape) -> bool:
        """Return that neither a row's place nor its neighbors change its bits, as a trial shows."""
        if shape.num_rows == 1 or self.model.quantisation != "none":  # packed layers round by what else is there
            return shape.num_rows == 1
        if shape not in self._usable:
            self._usable[shape] = self._is_rowwise(shape)
        return self._usable[shape]

    @torch.no_grad()
    def _is_rowwise(self, shape: GroupShape) -> bool:
        length, vocabulary = shape.num_tokens - (not shape.is_full), self._vocabulary
        rows = [(7 + 5 * row + 3 * np.arange(length)) % vocabulary for row in range(2 * shape.num_rows)]
        first, last = rows[0], shape.num_rows - 1
        one = self._run(shape, [first, *rows[1:last], first], self._sample)
        other = self._run(shape, [first, *rows[-last:]], self._sample)
        return torch.equal(one[0], one[last]) and torch.equal(one[0], other[0])

    # Trial

    def _try(self) -> None:
        """Compare forwards that begin behind the frozen layers with whole ones.

        Raises:
            ModelError: they differ by more than rounding.
        """
        batch = _trial_batch(self.model)
        call = partial(self.model.module, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        values, gives_tuple = compute_frozen(self.cut, call)
        self._width, self._dtype = values.shape[-1], values.dtype
        module: Network = self.model.module
        self._vocabulary = len(module.get_input_embeddings().weight)
        install(self.cut, gives_tuple)
        if not self._is_same(batch):
            raise ModelError(f"{type(self.model.module).__name__} gives something else behind its frozen layers")
        if self.model.kind != "classifier" and self.num_layers == num_layers(self.model.module):
            self.keeps_positions = True
            with suppress(RuntimeError, ValueError, IndexError):  # a model that needs whole sequences
                if self._is_same(batch):
                    return
            self.keeps_positions = False

    @torch.no_grad()
    def _is_same(self, batch: Batch) -> bool:
        score = scores if self.model.kind == "classifier" else answer_logits
        whole, behind = (score(self.model, given).double() for given in (batch, self(batch)))
        tolerance = 1e-3 if self._dtype == torch.float32 else 5e-2
        return bool((whole - behind).norm() <= tolerance * whole.norm())


def _are_alike(layers: tuple[torch.nn.Module, ...]) -> bool:
    """Return that all layers have parameters of the same names and shapes, so that one shows what all do."""
    forms = {tuple((name, tuple(p.shape)) for name, p in layer.named_parameters()) for layer in layers}
    return len(forms) == 1


def _trial_batch(model: Tuned) -> Batch:
    """Three sequences of three to five tokens, scored at their last one."""
    lengths = torch.tensor([5, 3, 4])
    ids = (torch.arange(5) + torch.arange(3)[:, None]) % 5
    mask = (torch.arange(5) < lengths[:, None]).long()
    labels = torch.zeros(3, dtype=torch.int64) if model.kind == "classifier" else None
    return Batch(ids, mask, torch.arange(3), lengths - 1, None, None, labels, 3).to(model.device)
