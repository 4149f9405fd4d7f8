import pytest
import torch
from tiny_models import CAUSAL, gaussian

from seedtune.errors import ModelError
from seedtune.models.generate import generate
from seedtune.models.load import load
from seedtune.sections import ModelConfig

PROMPTS = [[5, 6, 7], [8], [9, 10, 11], [6, 7], [12, 13, 5]]


def loaded(folder, **options):
    return load(ModelConfig(name=folder, **options), 2, gaussian)


def one_by_one(model, prompt, num_tokens, end):
    """Greedy tokens from whole forwards, without keys and values that are kept."""
    ids = list(prompt)
    for _ in range(num_tokens):
        best = int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if best == end:
            break
        ids.append(best)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_generation_is_greedy(tiny, family, batch_size):
    model = loaded(tiny(family))
    end = model.tokenizer.eos_token_id
    model.module.generation_config.eos_token_id = None
    expected = [one_by_one(model, prompt, 6, end) for prompt in PROMPTS]
    assert generate(model, PROMPTS, 6, batch_size) == expected


def test_generation_stops_before_the_end_token(tiny):
    model = loaded(tiny("llama"))
    model.module.generation_config.eos_token_id = None
    whole = one_by_one(model, PROMPTS[0], 6, model.tokenizer.eos_token_id)
    model.module.generation_config.eos_token_id = [whole[3], 31]
    assert generate(model, PROMPTS[:1], 6) == [whole[: whole.index(whole[3])]]


def test_generation_stays_in_the_window(tiny):
    model = loaded(tiny("llama"))
    assert len(generate(model, [[5] * 38], 6)[0]) <= 2


def test_nothing_asked_nothing_written(tiny):
    model = loaded(tiny("llama"))
    assert generate(model, [], 5) == []
    assert generate(model, [[5], [6, 7]], 0) == [[], []]


def test_lora_generates_as_its_base_at_the_start(tiny):
    prompts = PROMPTS[:2]
    assert generate(loaded(tiny("llama"), adapter="lora"), prompts, 4) == generate(loaded(tiny("llama")), prompts, 4)


@pytest.mark.parametrize("length", [0, 40, 41])
def test_a_prompt_must_leave_room(tiny, length):
    with pytest.raises(ModelError) as caught:
        generate(loaded(tiny("llama")), [[5] * length], 4)
    assert str(caught.value) == (
        f"a prompt of {length} tokens was given to write on from: the model takes 1 to 39 of them; cut it to fit"
    )


def test_only_causal_models_write(tiny):
    with pytest.raises(ModelError) as caught:
        generate(loaded(tiny("bert")), PROMPTS, 4)
    assert str(caught.value) == "a masked model was asked to write text: choose a causal model"


def test_a_real_model_tells_a_story(shared_data):
    model = loaded(str(shared_data / "models" / "stories260k"))
    prompt = model.tokenizer("Once upon a time, there was a little girl named")["input_ids"]
    (answer,) = generate(model, [prompt], 12)
    assert model.tokenizer.decode(answer).strip().startswith("Lily. She loved")
