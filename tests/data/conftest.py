"""Tokenizers made on the spot: a byte-level BPE as causal models have, a WordPiece with a mask as BERT has."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "the film was great and the actors were great",
    "the film was terrible and the story was terrible",
    "it was a long story about a short journey",
    "This text documents the package asyncio email http importlib logging multiprocessing unittest xml",
]


def byte_level(size: int = 400, lines: list[str] = LINES) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        lines * 50,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", model_max_length=10**9)


WORDS = """
    [PAD] [UNK] [CLS] [SEP] [MASK] the film was great terrible and story it a long yes no maybe . , ? rain wet is
    news : world sports business tech technology s m i l e t ##a ##b ##c
"""


@pytest.fixture(scope="session")
def bpe() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="session")
def wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS.split())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]",
        cls_token="[CLS]", sep_token="[SEP]", model_max_length=10**9,
    )  # fmt: skip


@pytest.fixture(scope="session")
def llama_like() -> PreTrainedTokenizerFast:
    """Puts a beginning-of-text token and, as SentencePiece does, a space before every text."""
    words = ["<s>", "</s>", "▁", "▁the", "▁film", "▁great", "▁terrible", "Yes", "No", "▁Yes", "\n", "a", "▁a"]
    pieces = [(word, -1.0 - 0.1 * i) for i, word in enumerate([*words, *"thefilmgrYsNob"])]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=10**9
    )
