"""`seedtune probe ...`: parse, call, print. What is measured, and how, is the other modules'.

Exit codes are those of the whole command line (`cli`): 0 done, 2 a request that cannot be met, 130 stopped.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..console import Device, Json, Set
from ..errors import ConfigError, unknown
from ..recipe_text import assignment, machine_of, merged

if TYPE_CHECKING:  # help is printed without loading torch
    from ..assembly import Experiment
    from .finding import Finding, Tell

app = typer.Typer(help="Measure the loss around a model's weights: what a run can hope for.", no_args_is_help=True)

Source = Annotated[
    str | None,
    typer.Argument(help="a known recipe, a TOML file, or a run folder for its last weights", show_default=False),
]
Model = Annotated[str | None, typer.Option(help="'starter', a folder or a hub id")]
Task = Annotated[str | None, typer.Option(help="a known task, or 'custom'")]
Method = Annotated[str | None, typer.Option(help="a known method, laid over the recipe")]
Out = Annotated[Path | None, typer.Option("--out", help="write the finding to this file too, as JSON")]
Scales = Annotated[str | None, typer.Option("--scales", help="perturbation scales to try, as 1e-4,1e-3")]
MOST = 1_000_000


def _count(least: int, text: str, most: int = MOST) -> Any:
    return typer.Option(min=least, max=most, help=text)


@app.command("effective-rank")
def effective_rank_(
    source: Source = None,
    model: Model = None,
    task: Task = None,
    method: Method = None,
    settings: Set = None,
    examples: Annotated[int, _count(1, "training examples that the loss is the mean of")] = 8,
    directions: Annotated[int, _count(2, "random directions for the traces")] = 16,
    eigenvalues: Annotated[int, _count(1, "how many of the largest in magnitude", 200)] = 5,
    scales: Scales = None,
    layers: Annotated[bool, typer.Option(help="the largest eigenvalue of each layer too")] = True,
    device: Device = "cpu",
    as_json: Json = False,
    file: Out = None,
) -> None:
    """Trace, largest eigenvalues and ranks of the loss's Hessian, whole and by layer."""
    _check_ready(file)
    from .effective_rank import RankOptions, effective_rank

    options = RankOptions(examples, directions, eigenvalues, _numbers("--scales", scales), layers)
    experiment = _experiment(source, method, model, task, settings, device)
    _carry_out(lambda tell: effective_rank(experiment, options, tell), as_json, file)


@app.command("perturbation-scale")
def perturbation_scale_(
    source: Source = None,
    model: Model = None,
    task: Task = None,
    method: Method = None,
    settings: Set = None,
    examples: Annotated[int, _count(1, "training examples that the loss is the mean of")] = 8,
    directions: Annotated[int, _count(2, "random directions")] = 6,
    scales: Scales = None,
    dtypes: Annotated[str | None, typer.Option(help="dtypes to try, as float32,bfloat16; default all three")] = None,
    device: Device = "cpu",
    as_json: Json = False,
    file: Out = None,
) -> None:
    """Bias, variance and rounding of the projected gradient over the perturbation scale, for each dtype."""
    _check_ready(file)
    from .perturbation_scale import DTYPES, SCALES, ScaleOptions, perturbation_scale

    options = ScaleOptions(examples, directions, _numbers("--scales", scales) or SCALES, _names(dtypes, DTYPES))
    experiment = _experiment(source, method, model, task, settings, device)
    _carry_out(lambda tell: perturbation_scale(experiment, options, tell), as_json, file)


@app.command("heterogeneity")
def heterogeneity_(
    source: Source = None,
    model: Model = None,
    task: Task = None,
    method: Method = None,
    settings: Set = None,
    alphas: Annotated[str | None, typer.Option(help="Dirichlet concentrations; default 0.1,1,10")] = None,
    examples: Annotated[int, _count(2, "examples of each client, for its gradient")] = 16,
    points: Annotated[int, _count(2, "weights at which gradients are compared", 100)] = 3,
    device: Device = "cpu",
    as_json: Json = False,
    file: Out = None,
) -> None:
    """What clients' signals and gradients say of how unlike they are, against what is known of their partition."""
    _check_ready(file)
    from .heterogeneity import HeterogeneityOptions, heterogeneity

    chosen = _numbers("--alphas", alphas) or HeterogeneityOptions.alphas
    options = HeterogeneityOptions(chosen, examples, points)
    experiment = _experiment(source, method, model, task, settings, device)
    _carry_out(lambda tell: heterogeneity(experiment, options, tell), as_json, file)


@app.command("rate-bound")
def rate_bound_(
    source: Source = None,
    model: Model = None,
    task: Task = None,
    method: Method = None,
    settings: Set = None,
    examples: Annotated[int, _count(1, "training examples of the loss whose Hessian is probed")] = 8,
    directions: Annotated[int, _count(2, "random directions for the traces")] = 16,
    batches: Annotated[int, _count(2, "mini-batches, for the noise of gradients", 1000)] = 8,
    device: Device = "cpu",
    as_json: Json = False,
    file: Out = None,
) -> None:
    """The bounds of FedMeZO's theory on the learning rate, for measured curvature and gradient noise."""
    _check_ready(file)
    from .rate_bound import RateOptions, rate_bound

    options = RateOptions(examples, directions, batches)
    experiment = _experiment(source, method, model, task, settings, device)
    _carry_out(lambda tell: rate_bound(experiment, options, tell), as_json, file)


def _names(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """
    Raises:
        ConfigError: one that is not known.
    """
    chosen = known if text is None else tuple(dict.fromkeys(text.split(",")))
    for name in chosen:
        if name not in known:
            raise ConfigError(unknown("dtype", name, known))
    return chosen


def _check_ready(file: Path | None) -> None:
    """
    Raises:
        ConfigError: scipy is missing, or the file's folder is.
    """
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise ConfigError(f"--out {file}: must be a file in a folder that is there")
    from .spectrum import scipy_part

    scipy_part("special")


def _numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Positive finite numbers, ascending, each once; none where the option was not given.

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return ()
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or not all(0 < value < float("inf") for value in found):
        raise ConfigError(f"{option} {text!r}: must be numbers above 0, parted by commas, such as 0.1,1")
    return tuple(found)


def _experiment(
    source: str | None, method: str | None, model: str | None, task: str | None, settings: list[str] | None, device: str
) -> Experiment:
    flags: dict[str, Any] = {}
    for section, value in (("model", model), ("task", task)):
        flags = merged(flags, {section: {"name": value}} if value is not None else {})
    machine = machine_of("auto", device)
    from .subject import subject_of

    return subject_of(source, method, flags, [assignment(text) for text in settings or []], machine)


def _carry_out(probe: Callable[[Tell], Finding], as_json: bool, file: Path | None) -> None:
    """Runs it, showing how far it is; prints and writes what it found."""
    from ..run_folder import replace_text, writing
    from ..terminal import finding_lines, stages

    began = time.monotonic()
    console = _console(sys.stderr, stderr=True)
    with stages(console) as tell:
        found = probe(tell).as_json()
    found["cost"]["seconds"] = round(time.monotonic() - began, 2)
    text = json.dumps(found, indent=2, allow_nan=False)
    if file is not None:
        with writing(file.parent, "choose another file with --out"):
            replace_text(file, text + "\n")
    if as_json:
        print(text)
        return
    out = _console(sys.stdout)
    for part in finding_lines(found):
        out.print(part, soft_wrap=isinstance(part, str))


def _console(stream: Any, **options: Any) -> Console:
    width = None if stream.isatty() else 10_000  # where nobody looks at a terminal, no value is folded or cut
    return Console(width=width, markup=False, emoji=False, highlight=False, **options)
