"""Clients by rounds: a number for each client and round, few enough to draw.

Where clients or rounds are many, some clients are shown, from the lowest mean over the run to the highest, and rounds
are taken together by their mean. A client's own learning rate is in no file: it is made again from the recipe and the
recorded signals and slopes, with the functions that made it in the run.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..fed.rates import Told, before_each
from .curves import rounded
from .reading import Run, client_of, mapping, number

MOST_CLIENTS, MOST_CELLS, FEWEST_COLUMNS, MOST_COLUMNS = 100, 60_000, 40, 400
"""Rows of a map, cells of all runs' maps of one kind together, columns of a map."""
DIGITS = 4

Row = tuple[int, Mapping[int, float]]
"""A number of rounds and a value for each client that took part."""


def maps(run: Run, num_runs: int) -> dict[str, Any]:
    """The maps of a run by name: "losses" (training loss), "heldout" (loss on own held-out examples), "rates".

    A map that the run has no numbers for is left out, and so are rates that are the same for all clients. Cost: two
    passes over clients and rounds, and a hash each for rates.
    """
    found: dict[str, list[Row]] = {
        "losses": list(run.by_client("losses")),
        "heldout": list(_heldout(run)),
        "rates": list(own_rates(run)),
    }
    return {name: grid(rows, MOST_CELLS // num_runs) for name, rows in found.items() if rows}


def _heldout(run: Run) -> Iterator[Row]:
    for i, row in enumerate(run.rows):
        each = row.get("heldout")
        losses = {key: score.get("loss") for key, score in each.items() if isinstance(score, dict)} if isinstance(
            each, dict) else {}  # fmt: skip
        if found := run.clients_of(losses):
            yield i, found


def own_rates(run: Run) -> Iterator[Row]:
    """The learning rate of each client that answered; nothing where all have the round's."""
    is_own = run.recipe.is_rate_auto and run.recipe.auto.per_client
    if run.recipe.personalise.policy == "fixed" and not is_own:
        return
    for i, (row, rates) in enumerate(zip(run.rows[1:], before_each(run.recipe, _told(run)), strict=True)):
        rate, clients = number(row.get("learning_rate")), run.clients_of(row.get("losses"))
        if clients and np.isfinite(rate):
            yield i + 1, {client: rate * rates.factor(i, client) for client in clients}


def _told(run: Run) -> list[Told]:
    """What each round says of the next rates; one that says it went back to where the run never was, did not."""
    told, states = [], {0}
    for i, row in enumerate(run.rows[1:]):
        back = number(row.get("back_to"))
        back_to = int(back) if back in states else None
        told.append(Told(run.clients_of(row.get("signals")), _slopes(row), back_to))
        if back_to is None:
            states.add(i + 1)
    return told


def _slopes(row: Mapping[str, Any]) -> dict[int, tuple[float, ...]]:
    """What clients measured in a round, of those whose numbers are all there and finite."""
    each = mapping(row.get("slopes")).items()
    lists = {key: value for key, value in each if isinstance(value, list) and value}
    told = {client_of(key): tuple(map(number, value)) for key, value in lists.items()}
    return {client: slopes for client, slopes in told.items() if client >= 0 and np.isfinite(slopes).all()}


def grid(rows: Sequence[Row], most_cells: int = MOST_CELLS) -> dict[str, Any]:
    """The map of some rows, which must not be none.

    clients: who is shown, from the top; num_clients: who there is; spans: first and last round of each column;
    values: [clients][columns], None where a client did not take part.
    """
    num_all, shown = _shown(rows)
    columns = min(len(rows), MOST_COLUMNS, max(FEWEST_COLUMNS, most_cells // len(shown)))
    parts = np.array_split(np.arange(len(rows)), columns)
    place = {client: i for i, client in enumerate(shown)}
    sums, counts = np.zeros((len(shown), columns)), np.zeros((len(shown), columns))
    for column, part in enumerate(parts):
        for at in part:
            for client, value in rows[at][1].items():
                if (i := place.get(client)) is not None:
                    sums[i, column] += value
                    counts[i, column] += 1
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return {
        "clients": shown, "num_clients": num_all,
        "spans": [[rows[part[0]][0], rows[part[-1]][0]] for part in parts],
        "values": [[rounded(value, DIGITS) for value in line] for line in means],
        "rounds_a_column": max(map(len, parts)),
    }  # fmt: skip


def _shown(rows: Sequence[Row]) -> tuple[int, list[int]]:
    """How many clients there are, and those to show: all by number, or so many, evenly, by their mean."""
    sums: dict[int, float] = {}
    counts: dict[int, int] = {}
    for _, values in rows:
        for client, value in values.items():
            sums[client] = sums.get(client, 0.0) + value
            counts[client] = counts.get(client, 0) + 1
    everyone = sorted(sums)
    if len(everyone) <= MOST_CLIENTS:
        return len(everyone), everyone
    by_mean = sorted(everyone, key=lambda client: (sums[client] / counts[client], client))
    places = np.linspace(0, len(by_mean) - 1, MOST_CLIENTS).round().astype(int)
    return len(everyone), [by_mean[place] for place in places]
