"""A run's curves as TensorBoard's event files, for those who watch all their runs there (extra `tensorboard`).

A run that is resumed into the same folder goes on where it stopped: TensorBoard leaves out what an interrupted process
wrote after its last whole round. What a run is, is in its own folder; these files are only read by people.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, RunStoreError, install_hint

if TYPE_CHECKING:
    from .experiment import Listener
    from .fed.rounds import RoundResult
    from .metrics import Evaluated


@contextmanager
def listening(folder: Path, first_round: int, sent: int = 0) -> Iterator[Listener]:
    """A listener that writes each round as it ends; what it counts as sent begins with `sent` bytes.

    Raises:
        ConfigError: tensorboardX is not installed. RunStoreError: the folder cannot be written.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError(f"--tensorboard: needs tensorboardX: {install_hint('tensorboard')}") from None
    try:
        # two files that begin in one second would have one name
        writer = SummaryWriter(str(folder), purge_step=first_round + 1, filename_suffix=f".{first_round}")
    except OSError as error:
        raise RunStoreError(f"--tensorboard {folder}: cannot be written: {error.strerror}") from None
    try:
        yield _Events(writer, sent)
    finally:
        writer.close()


class _Events:
    def __init__(self, writer: Any, sent: int):
        self._writer, self._sent = writer, sent

    def __call__(self, num_rounds: int, result: RoundResult | None, evaluation: Evaluated | None) -> None:
        for name, value in {**self._of_round(result), **_of_evaluation(evaluation)}.items():
            self._writer.add_scalar(name, value, num_rounds)
        self._writer.flush()

    def _of_round(self, result: RoundResult | None) -> dict[str, float]:
        if result is None:
            return {}
        if result.epsilon is not None:  # of a private run, what it publishes
            learning = {"train/learning_rate": result.rate, "train/scalar_rms": result.scalar_rms}
            return {"privacy/epsilon": result.epsilon, **learning}
        self._sent += result.bytes_up + result.bytes_down
        return {
            "train/loss": result.train_loss, "train/learning_rate": result.rate, "train/scalar_rms": result.scalar_rms,
            "round/seconds": result.seconds, "round/replies": len(result.record.clients),
            "round/failed": len(result.failed), "round/skipped_steps": result.skipped_steps, "sent/bytes": self._sent,
        }  # fmt: skip


def _of_evaluation(evaluation: Evaluated | None) -> dict[str, float]:
    if evaluation is None:
        return {}
    found = {name: getattr(evaluation.test, name) for name in ("loss", "accuracy", "perplexity")}
    return {f"test/{name}": value for name, value in found.items() if value is not None}
