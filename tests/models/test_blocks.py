"""A cut model computes what the whole one does, in two parts that share no work."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
from tiny_models import IDS, MASK, adapted, batch_of, gaussian, tiny_module, with_values
from torch.nn import ModuleList

from seedtune.errors import ModelError
from seedtune.models.blocks import cut_before, default_cut, num_layers
from seedtune.models.encoder import EncoderWithHead
from seedtune.models.load import load
from seedtune.models.objective import loss
from seedtune.sections import ModelConfig

NUM_LAYERS = 3
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "opt", "gpt2", "bert", "roberta", "distilbert", "bert_classifier")
ADAPTED = {
    "llama lora": "CAUSAL_LM",
    "opt lora": "CAUSAL_LM",
    "gpt2 lora": "CAUSAL_LM",
    "bert_classifier lora": "SEQ_CLS",
}
MODELS = (*FAMILIES, *ADAPTED, "encoder with head", "encoder with head lora")
TIED = {
    "llama",
    "qwen3",
    "gemma2",
    "opt",
    "gpt2",
    "bert",
    "roberta",
    "distilbert",
    "llama lora",
    "opt lora",
    "gpt2 lora",
}
PLACES = range(1, NUM_LAYERS + 1)
pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Every tensor differs from zero, LoRA's B included."""
    family = "encoder" if name.startswith("encoder") else name.removesuffix(" lora")
    module = tiny_module(family, NUM_LAYERS).to(dtype)
    if name.endswith("lora"):
        module = adapted(module, ADAPTED.get(name, "FEATURE_EXTRACTION"))
    if family == "encoder":
        module = EncoderWithHead(module, 2)
    return with_values(module)


def output(module: torch.nn.Module, ids=IDS, mask=MASK, **options) -> torch.Tensor:
    return module(input_ids=ids, attention_mask=mask, **options)[0]


def tensors_of(activations) -> list[torch.Tensor]:
    made = [value for _, given in activations.outputs for value in (given if isinstance(given, tuple) else (given,))]
    return [value for value in (*activations.inputs.values(), *made) if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("k", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_suffix_after_prefix_is_the_whole_to_the_bit(name, dtype, k):
    module = model_of(name, dtype)
    cut, call = cut_before(module, k), partial(output, module)
    activations = cut.prefix(call)
    kept = [tensor.clone() for tensor in tensors_of(activations)]
    for _ in range(3):
        assert torch.equal(cut.suffix(call, activations), call())
    for tensor, before in zip(tensors_of(activations), kept, strict=True):
        assert torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(before)), "activations were written"


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "roberta", "encoder"])
def test_a_loss_at_few_positions_is_cut_like_any_call(tiny, family, k):
    model = load(ModelConfig(name=tiny(family)), 2, gaussian)
    sequences = [[5, 6, 7, 8, 9], [10, 11, 4], [9, 6, 13, 12]]
    batch = batch_of(sequences, rows=[0, 1, 2], columns=[4, 2, 3], candidates=[7, 8], labels=[0, 1, 0])
    call, cut = partial(loss, model, batch), cut_before(model.module, k)
    assert torch.equal(cut.suffix(call, cut.prefix(call)), call())


def counted(module: torch.nn.Module) -> Counter:
    """How often each submodule computes, by name, from now on."""
    counts: Counter = Counter()

    def counting(name, forward):
        def counting_forward(*args, **kwargs):
            counts[name] += 1
            return forward(*args, **kwargs)

        return counting_forward

    for name, child in module.named_modules():
        child.forward = counting(name, child.forward)
    return counts


@pytest.mark.parametrize("k", PLACES)
@pytest.mark.parametrize("name", MODELS)
def test_the_two_parts_share_no_work(name, k):
    """Each module computes in one part alone, but for those that hold the layers and so call both parts."""
    module = model_of(name)
    cut = cut_before(module, k)
    holders = {path for path, child in module.named_modules() if cut.layers[0] in set(child.modules())}
    holders -= {path for path, child in module.named_modules() if child in set(cut.layers[0].modules())}
    counts, call = counted(module), partial(output, module)
    call()
    whole = counts.copy()
    counts.clear()
    activations = cut.prefix(call)
    first = counts.copy()
    counts.clear()
    cut.suffix(call, activations)
    assert all(n == 1 for n in whole.values())
    assert first.keys() | counts.keys() == whole.keys()
    assert first.keys() & counts.keys() == holders & whole.keys()
    paths = {child: path for path, child in module.named_modules()}
    layers = next(child for child in module.modules() if isinstance(child, ModuleList) and cut.layers[0] in child)
    assert [paths[layer] in first for layer in layers] == [index < k for index in range(NUM_LAYERS)]
    assert [paths[layer] in counts for layer in layers] == [index >= k for index in range(NUM_LAYERS)]


@pytest.mark.parametrize("name", MODELS)
def test_blocks_say_where_a_parameter_is_read_first(name):
    module = model_of(name)
    cut = cut_before(module, 2)
    names = [key for key, _ in module.named_parameters()]
    assert cut.block1 | cut.block2 == set(names) and not cut.block1 & cut.block2
    for key in names:
        index = next((int(part) for part in key.split(".") if part.isdigit()), None)
        is_first = index < 2 if index is not None else "embed" in key or ".wte." in key or ".wpe." in key
        assert cut.block_of(key) == (1 if is_first else 2), key
    tied = [key for key in names if "word_embeddings" in key or "embed_tokens" in key or ".wte." in key]
    assert cut.shared == (set(tied) if name in TIED else set())


def test_a_name_in_no_block():
    cut = cut_before(tiny_module("llama"), 1)
    with pytest.raises(ModelError) as caught:
        cut.block_of("lm_head.weight")
    assert str(caught.value) == (
        "'lm_head.weight' is in no block of LlamaForCausalLM: give a name that its named_parameters() lists"
    )


def test_what_nothing_reads_behind_the_cut_is_not_held():
    module = model_of("llama")
    hidden, table, inputs = IDS.numel() * 16 * 4, 5 * 8 * 4, IDS.nbytes + MASK.nbytes
    held = [cut_before(module, k).prefix(partial(output, module)).nbytes for k in PLACES]
    of_embedding = held[2] - hidden - inputs
    assert 0 <= of_embedding <= 16  # a NaN for each of embedding and tables
    assert held[:2] == [hidden + inputs + 2 * table + 4] * 2


def test_the_default_is_half_depth():
    module = tiny_module("opt", 5)
    assert num_layers(module) == 5 and default_cut(module) == 2


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_place_out_of_range(k):
    with pytest.raises(ModelError) as caught:
        cut_before(model_of("opt"), k)
    assert str(caught.value) == (
        f"cut of OPTForCausalLM before layer {k}: 'model.decoder.layers' has 3 layers; choose 1 to 2, or 3 for a cut "
        "behind the last"
    )


def test_no_graph_is_built_and_no_global_generator_used():
    module, state = model_of("llama").requires_grad_(True), torch.get_rng_state()
    cut = cut_before(module, 1)
    activations = cut.prefix(partial(output, module))
    assert not cut.suffix(partial(output, module), activations).requires_grad
    assert not any(tensor.requires_grad for tensor in tensors_of(activations))
    assert torch.is_grad_enabled() and torch.equal(torch.get_rng_state(), state)


# The module is left as it was


@pytest.mark.parametrize("place", ["before the cut", "behind the cut", None])
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2 lora"])
def test_the_module_is_as_before_also_after_an_error(name, place):
    module = model_of(name)
    own = next(module.children()).forward
    next(module.children()).forward = own
    before, attributes = copy.deepcopy(module.state_dict()), [dict(vars(child)) for child in module.modules()]
    cut, call = cut_before(module, 2), partial(output, module)
    activations = cut.prefix(call)

    def fail(*_):
        raise MemoryError

    stack = next(child for child in module.modules() if isinstance(child, ModuleList))
    handle = place and stack[0 if place == "before the cut" else -1].register_forward_hook(fail)
    for part in (lambda: cut.prefix(call), lambda: cut.suffix(call, activations)):
        try:
            part()
        except MemoryError:
            assert place
    if handle:
        handle.remove()
    for child, known in zip(module.modules(), attributes, strict=True):
        assert vars(child).keys() == known.keys() and vars(child).get("forward") is known.get("forward")
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())
    assert torch.equal(cut.suffix(call, activations), call())


# Activations serve one batch, one cut, one kind of call


@pytest.mark.parametrize(
    ("argument", "other"),
    [
        ("input_ids", dict(ids=IDS.flip(0))),
        ("input_ids", dict(ids=IDS[:1], mask=MASK[:1])),
        ("attention_mask", dict(mask=torch.ones_like(MASK))),
        ("attention_mask", dict(mask=MASK.bool())),
        ("use_cache", dict(use_cache=False)),
    ],
)
def test_activations_of_another_batch_are_refused(argument, other):
    module = model_of("llama")
    cut = cut_before(module, 1)
    activations = cut.prefix(partial(output, module))
    with pytest.raises(ModelError) as caught:
        cut.suffix(partial(output, module, **other), activations)
    assert str(caught.value) == (
        f"activations of another batch were given: the model's argument {argument!r} differs; run the prefix on this "
        "batch"
    )


def test_a_batch_changed_in_place_is_another_one():
    module, ids = model_of("llama"), IDS.clone()
    cut = cut_before(module, 1)
    activations = cut.prefix(partial(output, module, ids))
    assert torch.equal(cut.suffix(partial(output, module, ids.clone()), activations), output(module))
    ids[0, 0] = 7
    with pytest.raises(ModelError, match="activations of another batch"):
        cut.suffix(partial(output, module, ids), activations)


def test_activations_of_another_cut_are_refused():
    module = model_of("llama")
    activations = cut_before(module, 1).prefix(partial(output, module))
    with pytest.raises(ModelError) as caught:
        cut_before(module, 2).suffix(partial(output, module), activations)
    assert str(caught.value) == "activations of another cut were given to the cut before layer 2: give its own"


@pytest.mark.parametrize("part", ["prefix", "suffix"])
def test_a_call_that_runs_no_model(part):
    module = model_of("encoder with head")
    cut = cut_before(module, 2)
    activations = cut.prefix(partial(output, module))
    call = (lambda: None) if part == "suffix" else partial(module.features, IDS, MASK)
    with pytest.raises(ModelError) as caught:
        cut.prefix(call) if part == "prefix" else cut.suffix(call, activations)
    assert str(caught.value) == (
        "a call did not run EncoderWithHead as far as layer 1: give a function that runs the whole model once, by its "
        "own forward"
    )


@pytest.mark.parametrize("call", ["twice", "around the forward"])
def test_a_call_that_is_not_one_run(call):
    module = model_of("encoder with head")
    cut, once = cut_before(module, 2), partial(output, module)
    activations = cut.prefix(once)
    calls = {"twice": lambda: once() + once(), "around the forward": partial(module.features, IDS, MASK)}
    with pytest.raises(ModelError) as caught:
        cut.suffix(calls[call], activations)
    assert str(caught.value) == (
        "a suffix ran other modules before the cut than its prefix: give both the same call, which runs the whole "
        "model once, by its own forward"
    )
