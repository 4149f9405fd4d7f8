"""The report: one HTML file about one run or several, which needs no network and no server.

Guarantees: the page holds everything it shows, and its own policy (Content-Security-Policy, with digests of its one
script and one style) forbids a browser to fetch anything or to run anything else; whatever comes from a run's files is
escaped, as text by Jinja and as data in JSON without `<`. The same folders give the same page. It reads run folders up
to the last whole round and trains nothing.
"""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import ConfigError
from ..run_folder import replace_text
from ..verdict import method_name
from . import answers, facts
from .client_map import maps
from .curves import curves
from .events import events, surges
from .facts import Fact
from .probe_tables import BAR_WIDTH, Kind, charts, kinds
from .probes import findings
from .reading import Run, known, read
from .settings import command, settings

SCRIPTS = ("format.js", "chart.js", "curves.js", "client_map.js", "probes.js", "scroll.js", "page.js")
STYLES = ("charts.css", "answers.css", "page.css")  # the last has what holds on narrow screens
SECTIONS = (
    ("results", "Results"), ("answers", "Answers"),
    ("curves", "Curves"), ("map", "Clients"), ("probes", "Probes"), ("traffic", "Traffic"),
    ("time", "Time"),
    ("events", "Events"), ("settings", "Settings"), ("environment", "Environment"), ("again", "Run it again"),
)  # fmt: skip
MARK = "<!-- seedtune report -->"
"""In the first line of every report: what has it may be replaced by another report."""
_MARK_WITHIN = 64


def write(folders: Sequence[Path], path: Path | None = None, probes: Sequence[Path] = ()) -> Path:
    """Writes the report of some runs to `path`, by default beside the first of them; where it is now.

    probes: findings that lie elsewhere than in the runs' folders.

    Raises:
        RunStoreError: no run there, a damaged one, or a disk that says no. ConfigError: `path` is something else than
            an earlier report, or one of `probes` holds no finding.
    """
    path = path or beside(folders)
    with _saying(path):
        _check_free(path)
        page = html(read(folders), probes)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, page)
    return path


def beside(folders: Sequence[Path]) -> Path:
    """Where a report lies that is told no place.

    >>> beside([Path("/runs/demo")]).as_posix(), beside([Path("/runs/a"), Path("/runs/b")]).as_posix()
    ('/runs/demo-report.html', '/runs/a-and-1-more-report.html')
    """
    first = folders[0] if folders[0].name not in ("", "..") else folders[0].resolve()
    others = f"-and-{len(folders) - 1}-more" if len(folders) > 1 else ""
    return first.with_name(f"{first.name}{others}-report.html")


def _check_free(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"report {path}: is a folder; give the name of a file with --out")
    if path.parent.is_file():
        raise ConfigError(f"report {path}: {path.parent} is a file, no folder; choose another place with --out")
    if not path.exists():
        return
    with open(path, "rb") as file:
        is_report = MARK.encode() in file.read(_MARK_WITHIN)
    if not is_report:
        raise ConfigError(f"report {path}: is a file, and no report that may be replaced; choose another with --out")


@contextmanager
def _saying(path: Path) -> Iterator[None]:
    """Makes one line of what a disk says no to."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"report {path}: cannot be written: {error.strerror or error}; choose another file with --out"
        ) from None


def html(runs: Sequence[Run], probes: Sequence[Path] = ()) -> str:
    """The page about some runs, in order, with what probes of them found and what other findings say.

    Raises:
        ConfigError: one of `probes` holds no finding.
    """
    found, damaged = findings(runs, probes)
    compared = kinds(found, len(runs))
    templates = Environment(
        loader=PackageLoader("seedtune.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    told, script, style = [_told(run) for run in runs], _joined(SCRIPTS), _joined(STYLES)
    absent = {"probes": not (compared or damaged), "answers": not any(run["has_answers"] for run in told)}
    page = templates.get_template("page.html").render(
        mark=MARK, script=script, style=style, script_digest=_digest(script), style_digest=_digest(style),
        title="; ".join(run.label for run in runs[:3]) + (" …" if len(runs) > 3 else ""),
        runs=told, tables=_tables(runs), settings=settings([run.recipe for run in runs]),
        data=data(runs, compared), kinds=compared, damaged=damaged, bar_width=BAR_WIDTH,
        sections=[(id_, name) for id_, name in SECTIONS if not absent.get(id_)], version=version("seedtune"),
    )  # fmt: skip
    return page.encode("utf-8", "replace").decode("utf-8")


def data(runs: Sequence[Run], compared: Sequence[Kind]) -> dict[str, Any]:
    """What the page's script draws."""
    probes = [{"charts": list(charts(kind)), "is_named": kind.is_named} for kind in compared]
    return {"runs": [_drawn(run, len(runs)) for run in runs], "probes": probes}


def _drawn(run: Run, num_runs: int) -> dict[str, Any]:
    backpropagation = {name: known(run.summary.get(f"backprop_{name}")) for name in ("loss", "accuracy", "perplexity")}
    return {
        "label": run.label, **curves(run, num_runs), "maps": maps(run, num_runs), "surges": surges(run),
        "policy": run.recipe.personalise.policy, "backpropagation": backpropagation, "guides": answers.guides(run),
    }  # fmt: skip


def _told(run: Run) -> dict[str, Any]:
    """What the template says of a run."""
    matrices, samples = answers.confusions(run), answers.samples(run)
    return {
        "story": answers.story(run), "confusions": matrices, "samples": samples,
        "has_answers": bool(matrices or samples),
        "label": run.label, "recipe": run.recipe, "status": facts.status(run), "has_ended": run.has_ended,
        "model": facts.model(run), "shares": facts.time_shares(run), "digest": facts.digest(run),
        "more_events": events(run)[1], "command": command(run.recipe, f"{run.folder}-again"),
        "folder": str(run.folder), "num_rounds": run.num_rounds, "method": method_name(run.recipe.run.method),
    }  # fmt: skip


def _tables(runs: Sequence[Run]) -> dict[str, Any]:
    """The facts of all runs by section, and their events with the place of the run."""
    kinds = {"results": facts.results, "traffic": facts.traffic, "pace": facts.pace, "environment": facts.environment}
    found = {name: _side_by_side(name, [list(kind(run)) for run in runs]) for name, kind in kinds.items()}
    return found | {"events": [(i, event) for i, run in enumerate(runs) for event in events(run)[0]]}


def _side_by_side(caption: str, each: Sequence[Sequence[Fact]]) -> dict[str, Any]:
    """Facts by name, a row a run; None where a run does not have one."""
    names = list(dict.fromkeys(fact.name for found in each for fact in found))
    by_name = [{fact.name: fact for fact in found} for found in each]
    return {"caption": caption, "names": names, "rows": [[row.get(name) for name in names] for row in by_name],
            "single": each[0]}  # fmt: skip


def _joined(names: Sequence[str]) -> str:
    """The templates of these names, one after another."""
    folder = files(__package__) / "templates"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
