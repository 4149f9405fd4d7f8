"""`seedtune probe ...`: parse, call, print. What is measured, and how, is the other modules'.

Exit codes are those of the whole command line (`cli`): 0 done, 2 a request that cannot be met, 130 stopped.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command_group import CommandGroup
from .console import Device, Json, Set, err, nested, out
from .errors import ConfigError, RunStoreError, unknown
from .recipe_text import machine_of, merged

if TYPE_CHECKING:  # help is printed without loading torch
    from .analysis.finding import Finding, Tell
    from .assembly import Experiment

Probe = Callable[["Experiment", "Tell"], "Finding"]

app = typer.Typer(
    cls=CommandGroup, help="Measure the loss around a model's weights: what a run can hope for.", no_args_is_help=True
)

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


def _command(name: str) -> Callable[[Callable[..., Probe]], Callable[..., Probe]]:
    """Makes a command of a function that turns one probe's own options into the probe; the options that all probes
    share, and what is done with them, are those of `_probe`."""

    def register(chosen: Callable[..., Probe]) -> Callable[..., Probe]:
        own = signature(chosen).parameters
        shared = list(signature(_probe).parameters.values())[1:]

        def command(**given: Any) -> None:
            _check_ready(given["file"])
            probe = chosen(**{option: given.pop(option) for option in own})
            _probe(probe, **given)

        options = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own.values(), *shared)]
        command.__signature__ = Signature(options)  # type: ignore[attr-defined]  # where `inspect` looks first
        app.command(name, help=chosen.__doc__)(command)
        return chosen

    return register


def _probe(
    probe: Probe,
    source: Source = None,
    model: Model = None,
    task: Task = None,
    method: Method = None,
    settings: Set = None,
    device: Device = "cpu",
    as_json: Json = False,
    file: Out = None,
) -> None:
    """Runs a probe of what the options name, showing how far it is; prints what it found, writes it where asked, and
    keeps that of a run in its folder."""
    from .analysis.subject import run_of, subject_of
    from .run_folder import replace_text, writing
    from .terminal import finding_lines, stages

    names = {"model": model, "task": task}
    over = merged({part: {"name": name} for part, name in names.items() if name is not None}, nested(settings))
    experiment = subject_of(source, method, over, machine_of("auto", device), partial(err.print, soft_wrap=True))
    began = time.monotonic()
    with stages(err) as tell:
        found = probe(experiment, tell).as_json()
    found["cost"]["seconds"] = round(time.monotonic() - began, 2)
    if over:
        found["about"]["asked with"] = ", ".join(
            f"{part}.{key}={value}" for part in over for key, value in over[part].items()
        )
    text = json.dumps(found, indent=2, allow_nan=False)
    if file is not None:
        with writing(file.parent, "choose another file with --out"):
            replace_text(file, text + "\n")
    if as_json:
        print(text)
    else:
        for part in finding_lines(found):
            out.print(part, soft_wrap=isinstance(part, str))
    if (folder := run_of(source)) is not None:
        _keep(folder, found["probe"], text)


def _keep(folder: Path, probe: str, text: str) -> None:
    """Keeps a finding in a run's folder, for its report; where the folder cannot be written, says so."""
    from .run_store import keep_finding

    try:
        path = keep_finding(folder, probe, text + "\n")
    except RunStoreError as error:
        err.print(f"note: not kept for the report: {error}", soft_wrap=True)
    else:
        err.print(f"kept: {path}; 'seedtune report {folder}' shows it", soft_wrap=True)


@_command("effective-rank")
def _effective_rank(
    examples: Annotated[int, _count(1, "training examples that the loss is the mean of")] = 8,
    directions: Annotated[int, _count(2, "random directions for the traces")] = 16,
    eigenvalues: Annotated[int, _count(1, "how many of the largest in magnitude", 200)] = 5,
    scales: Scales = None,
    layers: Annotated[bool, typer.Option(help="the largest eigenvalue of each layer too")] = True,
    starts: Annotated[int, _count(2, "random starts for the trace of |H|")] = 4,
    steps: Annotated[int, _count(2, "Lanczos steps of each start", 1000)] = 20,
    block_steps: Annotated[int, _count(0, "the same for each layer's trace of |H|; 0: not by layer", 1000)] = 0,
) -> Probe:
    """Trace, largest eigenvalues and ranks of the loss's Hessian, whole and by layer."""
    from .analysis.effective_rank import RankOptions, effective_rank

    if block_steps and not layers:
        raise ConfigError(f"--block-steps {block_steps} is for layers, which --no-layers leaves out: give one of them")
    mus = _numbers("--scales", scales)
    options = RankOptions(examples, directions, eigenvalues, mus, layers, starts, steps, block_steps)
    return lambda experiment, tell: effective_rank(experiment, options, tell)


@_command("perturbation-scale")
def _perturbation_scale(
    examples: Annotated[int, _count(1, "training examples that the loss is the mean of")] = 8,
    directions: Annotated[int, _count(2, "random directions")] = 6,
    scales: Scales = None,
    dtypes: Annotated[str | None, typer.Option(help="dtypes to try, as float32,bfloat16; default all three")] = None,
) -> Probe:
    """Bias, variance and rounding of the projected gradient over the perturbation scale, for each dtype."""
    from .analysis.perturbation_scale import DTYPES, SCALES, ScaleOptions, perturbation_scale

    options = ScaleOptions(examples, directions, _numbers("--scales", scales) or SCALES, _names(dtypes, DTYPES))
    return lambda experiment, tell: perturbation_scale(experiment, options, tell)


@_command("heterogeneity")
def _heterogeneity(
    alphas: Annotated[str | None, typer.Option(help="Dirichlet concentrations; default 0.1,1,10")] = None,
    examples: Annotated[int, _count(2, "examples of each client, for its gradient")] = 16,
    points: Annotated[int, _count(2, "weights at which gradients are compared", 100)] = 3,
) -> Probe:
    """What clients' signals and gradients say of how unlike they are, against what is known of their partition."""
    from .analysis.heterogeneity import HeterogeneityOptions, heterogeneity

    chosen = _numbers("--alphas", alphas) or HeterogeneityOptions.alphas
    options = HeterogeneityOptions(chosen, examples, points)
    return lambda experiment, tell: heterogeneity(experiment, options, tell)


@_command("rate-bound")
def _rate_bound(
    examples: Annotated[int, _count(1, "training examples of the loss whose Hessian is probed")] = 8,
    directions: Annotated[int, _count(2, "random directions for the traces")] = 16,
    batches: Annotated[int, _count(2, "mini-batches, for the noise of gradients", 1000)] = 8,
) -> Probe:
    """The bounds of FedMeZO's theory on the learning rate, for measured curvature and gradient noise."""
    from .analysis.rate_bound import RateOptions, rate_bound

    options = RateOptions(examples, directions, batches)
    return lambda experiment, tell: rate_bound(experiment, options, tell)


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
    from .analysis.spectrum import scipy_part

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
