"""A tiny causal model with its tokenizer, a tiny table, recipes over them, and processes that can be killed."""

import csv
import multiprocessing
import os
import signal
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seedtune.config import Machine, Recipe
from seedtune.experiment import Listener, resume, run
from seedtune.recipe_text import build, merged

WORDS = ("red", "green", "blue")
THINGS = ("apple", "brick", "cherry", "grass", "leaf", "pine", "sky", "sea", "ice", "berry")


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 pieces in which each answer word is one."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines = [f"the {thing} is {word}" for thing in THINGS for word in WORDS] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def save_model(folder: Path, seed: int = 0) -> Path:
    """Writes a Llama of two layers, 32 wide, with weights that `seed` and their names give."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        module = LlamaForCausalLM(config)
    return _saved(module, folder, seed)


def save_encoder(folder: Path) -> Path:
    """Writes an encoder without a head, of two layers, 16 wide."""
    config = BertConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        module = BertModel(config, add_pooling_layer=False)
    return _saved(module, folder, 0)


def _saved(module: torch.nn.Module, folder: Path, seed: int) -> Path:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            values = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
            parameter.copy_((parameter.dim() == 1) + 0.2 * values)
    module.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_task(path: Path, num_rows: int = 60) -> Path:
    """Writes a table of things and their colours."""
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["thing", "colour"])
        for i in range(num_rows):
            table.writerow([f"{THINGS[i % len(THINGS)]} {i}", WORDS[(i * 7 + i // 5) % 3]])
    return path


def values(folder: Path, table: Path, /, **over: dict) -> dict:
    """A recipe's values: three rounds, four clients; `over` is laid on top, section by section."""
    base = {
        "model": {"name": str(folder)},
        "task": {
            "name": "custom", "path": str(table), "template": "the {thing} is", "label_column": "colour",
            "answers": {word: f" {word}" for word in WORDS}, "max_tokens": 32,
        },
        "partition": {"num_clients": 4},
        "federation": {"num_rounds": 3, "batch_size": 4},
        "local": {"learning_rate": 1e-2, "perturbation_scale": 1e-2},
        "run": {"seed": 7, "num_threads": 1},
    }  # fmt: skip
    return merged(base, over)


def recipe(folder: Path, table: Path, /, **over: dict) -> Recipe:
    return build(values(folder, table, **over))


def toml(values: dict) -> str:
    """Two levels of tables as TOML; `answers` as an inline table."""
    return "\n".join(
        line
        for name, section in values.items()
        for line in (f"[{name}]", *(f"{k} = {_toml(v)}" for k, v in section.items()))
    )


def _toml(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{k}" = {_toml(v)}' for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def quiet(num_rounds, result, evaluation) -> None:
    """A listener that hears nothing."""


class StopAfter:
    """A listener that interrupts a run once `num_rounds` rounds are whole."""

    def __init__(self, num_rounds: int):
        self.num_rounds = num_rounds

    def __call__(self, num_rounds, result, evaluation) -> None:
        if num_rounds == self.num_rounds:
            raise KeyboardInterrupt


MACHINE = Machine()
NOTHING: Listener = quiet


def run_thrice(recipe: Recipe, folder: Path) -> list[dict]:
    """Summaries of a run, of the same again, and of one that was stopped after two rounds and resumed."""
    whole = [run(recipe, MACHINE, folder / name, NOTHING) for name in ("first", "again")]
    with suppress(KeyboardInterrupt):
        run(recipe, MACHINE, folder / "stopped", StopAfter(2))
    return [*whole, resume(folder / "stopped", MACHINE, NOTHING)]


def command(arguments: list[str], output: Path, folder: Path) -> None:
    """Runs the command line in this process, which is a child, with its output in files. Ctrl-C reaches it also where
    the tests were started by something that ignores it, as a shell does for what it puts into the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.argv = ["seedtune", *arguments]
    from seedtune.cli import main

    main()


def child(arguments: list[str], output: Path, folder: Path) -> multiprocessing.Process:
    """A started process that runs the command line; forked from a server that has imported it all, so it is quick."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_runs", "seedtune.cli", "seedtune.inspection", "seedtune.terminal"])
    process = context.Process(target=command, args=(arguments, output, folder))
    process.start()
    return process
