"""Makes the starter: a 3.8 M parameter Llama and its tokenizer, pretrained on the running Python's own texts.

    python -m seedtune.models.starter.pretrain --out DIR --steps 9000

Two losses share every step. Language modelling, on sources, docstrings and the language reference. And the *form* of
the task that the starter will be tuned on (docstring, prompt, answer), with cross-entropy over a few candidate
packages, as real base models have met the forms of their tasks. The eight packages of `seedtune.data.stdlib.HELD_BACK`
are in neither; one file in 25, chosen by a hash of its path, is kept out as well and gives the held-out figures.
Not part of any run: training uses backpropagation and takes about an hour on two cores.
"""

import argparse
import copy
import json
import math
import platform
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from seedtune.data import stdlib

VOCABULARY, WINDOW, FORM_TOKENS, NUM_CANDIDATES = 4096, 256, 72, 8
CONFIG: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=256, intermediate_size=640, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, rms_norm_eps=1e-5,
    bos_token_id=0, eos_token_id=0, pad_token_id=1,
)  # fmt: skip


def is_held_out(path: str) -> bool:
    return stdlib.stable_fraction(path) < 1 / 25


def pretraining_texts() -> tuple[list[str], list[str]]:
    """(training, held-out) texts for language modelling: source files, docstrings, the language reference."""
    files = [(p, s) for p, s in stdlib.source_files() if stdlib.package_of(p) not in stdlib.HELD_BACK]
    files = [(p, s) for p, s in files if not p.startswith("encodings/")]  # 1.4 MB of code tables, no language
    docs = [d for d in stdlib.docstrings() if d.package not in stdlib.HELD_BACK]
    train = [s for p, s in files if not is_held_out(p)] + [d.text for d in docs if not is_held_out(d.path)]
    held_out = [d.text for d in docs if is_held_out(d.path)]
    return train + list(stdlib.language_reference()), held_out


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every package's name (with the space before it) is one token, so that it can be an answer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    names = sorted({d.package for d in stdlib.docstrings()})
    tokenizer.train_from_iterator(texts + [f" {name}" for name in names] * 2000, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>", pad_token="<|pad|>", model_max_length=512
    )


def initialised_model(rng: np.random.Generator) -> LlamaForCausalLM:
    """A fresh model drawn from `rng` alone: no global random state."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    depth = 2 * CONFIG["num_hidden_layers"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = 0.02 / math.sqrt(depth) if residual else 0.02
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape, dtype=np.float32) * scale))
    return model


class FormTask:
    """Masked texts of other packages, with the prompt; the answer is the package, among random candidates.

    A text is a docstring from its start, as in the task itself; with `vary`, half are windows at a random place of a
    docstring or a source file, and one token in ten is replaced, so that a few thousand docstrings are not learned
    by heart.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, docs, sources, names: list[str], vary: bool):
        self.names, self.vary = names, vary
        self.answers = np.array([tokenizer.encode(f" {name}")[0] for name in names])
        self.suffix = tokenizer.encode(stdlib.FORM.format(text=""))
        self.docs = self._pool(tokenizer, docs)
        self.sources = self._pool(tokenizer, sources)

    def _pool(self, tokenizer, texts: list[stdlib.Docstring]):
        """(token arrays, labels, weights). Square-root weights: large packages do not drown the small ones."""
        texts = [t for t in texts if t.package in self.names]
        counts = Counter(t.package for t in texts)
        weight = np.array([counts[t.package] ** -0.5 for t in texts])
        encoded = tokenizer.backend_tokenizer.encode_batch([stdlib.masked(t) for t in texts])
        labels = np.array([self.names.index(t.package) for t in texts])
        return [np.array(e.ids) for e in encoded], labels, weight / weight.sum() if texts else weight

    def _example(self, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        varied = self.vary and rng.random() < 0.5
        texts, labels, weight = self.sources if varied and rng.random() < 0.7 else self.docs
        row = rng.choice(len(texts), p=weight)
        room = FORM_TOKENS - len(self.suffix)
        start = rng.integers(0, max(1, len(texts[row]) - room)) if varied else 0
        body = texts[row][start : start + room].copy()
        if self.vary:
            noisy = rng.random(len(body)) < 0.1
            body[noisy] = rng.integers(2, VOCABULARY, noisy.sum())
        return np.append(body, self.suffix), labels[row]

    def batch(self, rng: np.random.Generator, size: int):
        """ids [size, T] (right-padded), last [size], candidate tokens [size, 8] with the answer first."""
        prompts, labels = zip(*(self._example(rng) for _ in range(size)), strict=True)
        ids = np.full((size, max(map(len, prompts))), CONFIG["pad_token_id"])
        candidates = np.empty((size, NUM_CANDIDATES), int)
        for i, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
            ids[i, : len(prompt)] = prompt
            others = np.delete(np.arange(len(self.names)), label)
            candidates[i] = self.answers[np.append(label, rng.choice(others, NUM_CANDIDATES - 1, replace=False))]
        last = np.array([len(prompt) - 1 for prompt in prompts])
        return torch.from_numpy(ids), torch.from_numpy(last), torch.from_numpy(candidates)


def answer_names(tokenizer: PreTrainedTokenizerFast, docs: list[stdlib.Docstring]) -> list[str]:
    """Packages with at least three docstrings whose name is a single token."""
    counts = Counter(d.package for d in docs)
    return sorted(n for n, count in counts.items() if count >= 3 and len(tokenizer.encode(f" {n}")) == 1)


def form_loss_and_accuracy(model: LlamaForCausalLM, batch) -> tuple[torch.Tensor, float]:
    ids, last, candidates = batch
    hidden = model.model(ids).last_hidden_state[torch.arange(len(ids)), last]
    logits = torch.einsum("bh,bch->bc", hidden.float(), model.lm_head.weight[candidates])
    accuracy = (logits.argmax(1) == 0).float().mean().item()
    return torch.nn.functional.cross_entropy(logits, torch.zeros(len(ids), dtype=torch.long)), accuracy


def language_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def rate_at(step: int, steps: int, peak: float = 2e-3) -> float:
    """Linear warm-up over 2 %, then cosine down to a tenth."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warm) / (steps - warm)))


def windows(stream: np.ndarray, rng: np.random.Generator, size: int) -> torch.Tensor:
    starts = rng.integers(0, len(stream) - WINDOW - 1, size)
    return torch.from_numpy(np.stack([stream[s : s + WINDOW + 1] for s in starts]).astype(np.int64))


def encode_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts one after another, each followed by the end token, uint16."""
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*e.ids, CONFIG["eos_token_id"]], np.uint16) for e in encoded])


@torch.no_grad()
def held_out_figures(model, stream: np.ndarray, form: FormTask) -> dict[str, float]:
    """Mean loss per token over the held-out docstrings and accuracy among 8 candidates on held-out files."""
    rng = np.random.default_rng(1)
    num = (len(stream) - 1) // WINDOW
    ids = torch.from_numpy(stream[: num * WINDOW + 1].astype(np.int64))
    rows = torch.stack([ids[i * WINDOW : i * WINDOW + WINDOW + 1] for i in range(num)])
    losses = [language_loss(model, part).item() * len(part) for part in rows.split(16)]
    accuracies = [form_loss_and_accuracy(model, form.batch(rng, 64))[1] for _ in range(10)]
    return {"held_out_loss": sum(losses) / num, "held_out_form_accuracy": float(np.mean(accuracies))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    train, held_out = pretraining_texts()
    tokenizer = train_tokenizer(train)
    stream, held_out_stream = encode_stream(tokenizer, train), encode_stream(tokenizer, held_out)
    docs = [d for d in stdlib.docstrings() if d.package not in stdlib.HELD_BACK]
    docs_train = [d for d in docs if not is_held_out(d.path)]
    names = answer_names(tokenizer, docs_train)
    sources = [stdlib.Docstring(stdlib.package_of(p), p, s) for p, s in stdlib.source_files() if not is_held_out(p)]
    form = FormTask(tokenizer, docs_train, sources, names, vary=True)
    held_out_form = FormTask(tokenizer, [d for d in docs if is_held_out(d.path)], [], names, vary=False)
    model = initialised_model(rng)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))

    started = time.perf_counter()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, args.steps)
        with torch.autocast("cpu", torch.bfloat16):
            lm = language_loss(model, windows(stream, rng, 12))
            answer, accuracy = form_loss_and_accuracy(model, form.batch(rng, 48))
        (lm + 0.5 * answer).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == args.steps - 1:
            seconds = time.perf_counter() - started
            figures = held_out_figures(model, held_out_stream, held_out_form) if step % 500 == 0 else {}
            print(json.dumps(dict(step=step, lm=round(lm.item(), 3), form=round(answer.item(), 3),
                                  accuracy=accuracy, seconds=round(seconds), **figures)), flush=True)  # fmt: skip
        if step % 1000 == 999 or step == args.steps - 1:
            save(model, tokenizer, args.out)
    figures = held_out_figures(model, held_out_stream, held_out_form)
    made = dict(steps=args.steps, seed=args.seed, tokens_in_stream=len(stream), form_examples=len(form.docs[0]),
                form_packages=len(names), parameters=sum(p.numel() for p in model.parameters()),
                hours=round((time.perf_counter() - started) / 3600, 2), python=platform.python_version(),
                torch=torch.__version__, **figures)  # fmt: skip
    (args.out / "pretraining.json").write_text(json.dumps(made, indent=1) + "\n")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """The folder that `transformers` loads; weights as bfloat16, half the bytes, and `load` widens them."""
    copy.deepcopy(model).bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
