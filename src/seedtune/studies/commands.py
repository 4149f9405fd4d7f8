"""`seedtune study`: parse, call, print. Exit codes are those of the whole command line (`cli`)."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..console import Json, Set, err, nested, out, pairs
from ..errors import ConfigError


def study(
    name: Annotated[str | None, typer.Argument(help="a known study", show_default=False)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="a part of the rounds, on one seed")] = False,
    folder: Annotated[
        Path | None, typer.Option("--out", help="folder; default runs/studies/NAME, or NAME-quick")
    ] = None,
    model: Annotated[str | None, typer.Option(help="'starter', a folder or a hub id; tuned through LoRA")] = None,
    task: Annotated[str | None, typer.Option(help="a known task, or 'custom'")] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--also", help="a further model and task, as a partial recipe; may be repeated", show_default=False
        ),
    ] = None,
    settings: Set = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="number of seeds; default the study's own")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="runs at once; default one a core")] = None,
    listed: Annotated[bool, typer.Option("--list", help="name all studies and exit")] = False,
    as_json: Json = False,
) -> None:
    """Run a table or figure of a paper; go on with one that was stopped."""
    from . import catalogue

    if listed or name is None:
        _list(as_json, listed)
        return
    chosen, flags = catalogue.study_of(name), nested(settings)
    from . import display, outcomes, runner
    from .plan import Request

    plan = runner.prepared(Request(chosen, quick, model, task, flags, seeds, tuple(also or ())))
    folder = folder or Path("runs/studies") / (f"{name}-quick" if quick else name)
    try:
        with display.progress(err if as_json else out, plan) as listen:
            outcome = runner.carry_out(plan, folder, jobs, listen)
    except KeyboardInterrupt:
        again = shlex.join(["seedtune", *sys.argv[1:]])
        err.print(f"stopped; every whole round is kept: go on with '{again}'", soft_wrap=True)
        sys.exit(130)
    if as_json:
        print(json.dumps(outcomes.described(outcome), indent=2, allow_nan=False))
    else:
        display.show(out, outcome)


def _list(as_json: bool, asked: bool) -> None:
    from . import catalogue

    if not asked:
        raise ConfigError("study: give the name of a study, or --list to see them all")
    questions = {study.name: study.question for study in catalogue.STUDIES.values()}
    if as_json:
        print(json.dumps(questions, indent=2))
        return

    out.print(pairs(questions))
