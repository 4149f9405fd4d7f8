"""`seedtune tasks`, `task`, `init` and `predict`: parse, call, print. What is looked at or made is the other modules'.

Exit codes are those of the whole command line (`cli`): 0 done, 2 a request that cannot be met, 130 stopped.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Device, Json, Set, err, nested, out, table
from .recipe_text import machine_of

Model = Annotated[str | None, typer.Option(help="'starter', a folder or a hub id, whose tokenizer is used")]
MOST_CLIENTS = 16


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (task, tasks, init, predict):
        app.command()(command)


def tasks(as_json: Json = False) -> None:
    """List the known tasks: what each asks, its classes, where its data come from and whether they are here."""
    from .data.listing import list_tasks

    rows = [asdict(each) for each in list_tasks()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    shown = table("task", "asks", "classes", "data", "here")
    for row in rows:
        classes = "yours" if row["name"] == "custom" else str(row["classes"] or "text")
        shown.add_row(row["name"], row["asks"], classes, row["source"], "yes" if row["here"] else "no")
    out.print(shown)
    out.print("Look into one with 'seedtune task NAME', or into your own table with 'seedtune task FILE'.")


def task(
    name: Annotated[str, typer.Argument(help="a known task, a recipe, or your own csv, tsv, json, jsonl or parquet")],
    model: Model = None,
    settings: Set = None,
    prompts: Annotated[int, typer.Option(min=0, help="how many prompts to show")] = 3,
    as_json: Json = False,
) -> None:
    """Show a task before anything runs: prompts with answers, counts, lengths, cuts, doubts and the clients' shares."""
    from .previews import describe_task, find_subject

    found = describe_task(find_subject(name, model, nested(settings)), prompts)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for part in _lines(found):
        out.print(part, soft_wrap=isinstance(part, str))


def _lines(found: Mapping[str, Any]) -> Iterable[Any]:
    yield f"{found['task']}: {'choose one of the answers' if found['kind'] == 'choice' else 'write a text'}"
    for setting, value in found["taken"].items():
        yield f"  taken: task.{setting} = {json.dumps(value, ensure_ascii=False)}"
    yield found["counts"].split("; ")[0]
    yield from _length_lines(found["lengths"])
    yield from (f"note: {doubt}" for doubt in found["doubts"])
    for number, prompt in enumerate(found["prompts"], 1):
        yield ""
        yield from _prompt_lines(number, prompt)
    if found["clients"]:
        yield ""
        yield from _client_tables(found)


def _length_lines(lengths: Mapping[str, Any]) -> Iterable[str]:
    sizes = (
        f"{lengths['shortest']:,} to {lengths['longest']:,} {lengths['unit']} an example, {lengths['median']:,} in the"
    )
    yield f"{sizes} median"
    if lengths["unit"] == "characters":
        yield "give --model to see tokens, and what is cut"
    elif lengths["cut"] is None:
        yield f"nothing is cut: all fit into {lengths['limit']:,} tokens"
    else:
        cut, limit = lengths["cut"], lengths["limit"]
        yield f"cut to {limit:,} tokens: {cut['median']:,} are lost in the median, {cut['longest']:,} at most"


def _prompt_lines(number: int, prompt: Mapping[str, Any]) -> Iterable[str]:
    group = f" ({prompt['group']})" if prompt["group"] else ""
    yield f"prompt {number}{group}:"
    yield prompt["prompt"]
    if prompt["answer"]:
        yield f"answer: {json.dumps(prompt['answer'], ensure_ascii=False)}"
    if "tokens" in prompt:
        pieces = "|".join(prompt["tokens"])
        yield f"{len(prompt['tokens'])} tokens: {json.dumps(pieces, ensure_ascii=False)}"
        yield f"answer tokens: {json.dumps('|'.join(prompt['answer_tokens']), ensure_ascii=False)}"


def _client_tables(found: Mapping[str, Any]) -> Iterable[Any]:
    clients: Sequence[Mapping[str, Any]] = found["clients"]
    classes = list(clients[0]["classes"]) if len(clients[0]["classes"]) <= 12 else []
    shown = table("client", "training examples", *classes, "groups")
    for client in clients[:MOST_CLIENTS]:
        counts = (f"{client['classes'][name]:,}" for name in classes)
        groups = ", ".join(client["groups"][:4]) + (", ..." if len(client["groups"]) > 4 else "")
        shown.add_row(str(client["client"]), f"{client['examples']:,}", *counts, groups)
    yield f"{len(clients):,} clients, dealt {found['partition']}:"
    yield shown
    if len(clients) > MOST_CLIENTS:
        yield f"and {len(clients) - MOST_CLIENTS:,} more"


def init(
    file: Annotated[Path, typer.Argument(help="your csv, tsv, json, jsonl or parquet")],
    out_file: Annotated[Path | None, typer.Option("--out", help="the recipe; default FILE with .toml")] = None,
    model: Annotated[str, typer.Option(help="'starter', a folder or a hub id")] = "starter",
    settings: Set = None,
) -> None:
    """Write a commented recipe for your own table, which 'seedtune run' runs as it is."""
    from .drafts import check_free, draft_recipe, write_recipe

    path = out_file or Path(f"{file.name.split('.')[0]}.toml")
    check_free(path)
    write_recipe(path, draft_recipe(str(file), model, nested(settings), path.name))
    out.print(
        f"{path}: written. Look at its task with 'seedtune task {path}', run it with 'seedtune run {path}'.",
        soft_wrap=True,
    )


def predict(
    subject: Annotated[str, typer.Argument(help="a run folder, or a folder that 'seedtune replay' wrote")],
    file: Annotated[Path, typer.Argument(help="new rows: csv, tsv, json, jsonl or parquet; no label is needed")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="a csv or jsonl file; default csv on standard output")
    ] = None,
    task_name: Annotated[str | None, typer.Option("--task", help="another known task than the run's")] = None,
    base: Annotated[str | None, typer.Option(help="where the run's base is now, if it has moved")] = None,
    device: Device = "cpu",
) -> None:
    """Apply a tuned model to new rows: their columns, the prediction, and how sure the model is."""
    machine = machine_of("auto", device)
    from . import predicting
    from .sections import TaskConfig

    predicting.check_output(out_file)
    chosen = TaskConfig(name=task_name) if task_name else None
    rows = predicting.predict(subject, file, chosen, base, machine).as_rows()
    if out_file is None:
        sys.stdout.write(predicting.format_rows(rows, ".csv"))
        return
    predicting.write_output(out_file, rows)
    err.print(f"{out_file}: {len(rows):,} rows", soft_wrap=True)
