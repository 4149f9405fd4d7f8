"""What is measured of a case beside its runs: ways by name, what was asked of one, and the file that keeps the answer.

    measures/CASE/MEASURE/seed-K.json     what was asked, the readings, and how long it took

Guarantees: a file is there whole or not at all, and says what it answers; the same question is known by `key`, wherever
its file lies. How something is measured is the ways' (`seedtune.analysis`); nothing here decides what is.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ..config import Machine, Recipe
from ..errors import ConfigError, RunStoreError
from ..foreign_text import sanitize
from ..recipe_text import build
from ..run_files import explain, parse_object
from ..run_folder import replace_text, writing

Value = TypeVar("Value")


@dataclass(frozen=True)
class Asked:
    """One measurement. `recipe`: of the weights at their start, or of the run that has ended; None for what is apart
    from both."""

    what: str
    at: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None

    @property
    def key(self) -> str:
        """What tells two measurements apart."""
        return json.dumps(self.as_json(), sort_keys=True)

    def as_json(self) -> dict[str, Any]:
        recipe = self.recipe and self.recipe.model_dump(mode="json")
        return {"what": self.what, "at": self.at, "options": dict(self.options), "recipe": recipe}


@dataclass(frozen=True)
class Reading:
    """One number that was measured. part: of what, where a measurement tells of several things, such as layers."""

    part: str
    quantity: str
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Kept:
    """A measurement that is done, and its file."""

    file: Path
    key: str
    readings: tuple[Reading, ...]
    seconds: float


Way = Callable[[Asked, Path | None], Iterator[Reading]]
"""Measures what is asked, of the run in a folder where it is of a run's end."""


def block_ranks(asked: Asked, run: Path | None) -> Iterator[Reading]:
    """`analysis.block_ranks`, a part a block."""
    from ..analysis.block_ranks import BlockOptions, block_ranks
    from ..analysis.subject import subject_of
    from ..assembly import assemble

    experiment = subject_of(str(run), None, {}, Machine()) if run else assemble(sure(asked.recipe), Machine())
    for part, values in block_ranks(experiment, BlockOptions(**asked.options)).items():
        yield from (_reading(part, name, value) for name, value in values.items())


def rate_signals(asked: Asked, run: Path | None) -> Iterator[Reading]:
    """`analysis.rate_signals` of a run's records."""
    from .. import run_store
    from ..analysis.rate_signals import rate_signals

    folder = sure(run)
    found = rate_signals(run_store.recipe_of(folder), run_store.metrics_of(folder))
    yield _reading("", "rate and distance", found.rate)
    yield _reading("", "loss and distance", found.loss)
    for client, values in enumerate(zip(found.distance, found.mean_loss, found.mean_signal, strict=True)):
        names = ("distance", "loss", "signal")
        yield from (_reading(f"client {client}", *named) for named in zip(names, values, strict=True))


def peak_memory(asked: Asked, _run: Path | None) -> Iterator[Reading]:
    """`analysis.memory` of a model of a known shape, in a process of its own; nothing where it is likely not to fit."""
    from ..analysis.memory import in_fresh_process, measure_peak
    from ..analysis.memory_cases import Case, parameters_of, shortage

    method, case = asked.options["method"], Case(**{k: v for k, v in asked.options.items() if k != "method"})
    yield Reading("", "parameters", parameters_of(case))
    if short := shortage(case, method):
        yield Reading("", "needed", short["needs, MB"] * 1e6)
        return
    yield from (_reading("", name, value) for name, value in in_fresh_process(measure_peak, case, method).items())


WAYS: dict[str, Way] = {"block-ranks": block_ranks, "rate-signals": rate_signals, "peak-memory": peak_memory}


def _reading(part: str, quantity: str, value: Any) -> Reading:
    """Of a number, or of an `Interval`; what is not finite is not known."""
    from ..analysis.finding import plain

    found = plain(value)
    return Reading(part, quantity, *found) if isinstance(found, list) else Reading(part, quantity, found)


def take(asked: Asked, run: Path | None, file: Path) -> None:
    """Measures, and keeps the answer.

    Raises:
        SeedtuneError: it cannot be measured; RunStoreError: or not be written.
    """
    began = time.monotonic()
    readings = [asdict(one) for one in WAYS[asked.what](asked, run)]
    found = {"asked": asked.as_json(), "readings": readings, "seconds": round(time.monotonic() - began, 2)}
    with writing(file.parent, "make room, then give the same command again"):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(found, indent=1, allow_nan=False) + "\n")


def sure(value: Value | None) -> Value:
    """What is there wherever it is asked for: the loss of a case that has not diverged, a place where there is an axis.

    Raises:
        ValueError: it is not.
    """
    if value is None:
        raise ValueError("a study asked for what it has not measured")
    return value


class _AskedFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    what: str
    at: str
    options: dict[str, Any]
    recipe: dict[str, Any] | None


class _ReadingFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    part: str
    quantity: str
    value: float | None
    low: float | None
    high: float | None


class _KeptFile(BaseModel):
    """What `take` writes."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    asked: _AskedFile
    readings: list[_ReadingFile]
    seconds: float


def _asked(found: _AskedFile) -> Asked:
    """What a file says was asked: settings that came after it have their defaults, as in the recipe of a run."""
    recipe = None if found.recipe is None else build(found.recipe, "its recipe")
    return Asked(found.what, found.at, found.options, recipe)


def kept(file: Path) -> Kept:
    """
    Raises:
        RunStoreError: no measurement, or a damaged one.
    """
    try:
        found = _KeptFile.model_validate(parse_object(file.read_bytes()))
        readings = tuple(Reading(**vars(one)) for one in found.readings)
        return Kept(file, _asked(found.asked).key, readings, found.seconds)
    except (OSError, ValueError, ConfigError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else sanitize(error)
        raise RunStoreError(f"measurement {file}: cannot be read ({reason}): delete it, and it is made again") from None
