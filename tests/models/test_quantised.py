"""A base in 8 or 4 bits: what is packed, that it stays as it is, and that what LoRA learns on it is exact."""

import copy
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from tiny_models import batch_of, gaussian

from seedtune import experiment, run_store
from seedtune.assembly import load_replayed
from seedtune.config import Machine
from seedtune.errors import DigestMismatch, ModelError
from seedtune.models import quantised
from seedtune.models.export import export
from seedtune.models.generate import generate
from seedtune.models.load import load
from seedtune.models.objective import loss
from seedtune.models.starter import starter_folder
from seedtune.sections import ModelConfig
from seedtune.space import bound_weights, digest, model_digest, space_of
from seedtune.zo.estimators import one_by_one, two_point
from seedtune.zo.noise import Distribution
from seedtune.zo.perturb import Perturbation, Perturber
from seedtune.zo.update import Update, apply

HAS_BITSANDBYTES = find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(
    not HAS_BITSANDBYTES, reason="bitsandbytes is not installed: pip install '.[quant]'"
)
MAPS = Path("/proc/self/maps")
BITS = ("8bit", "4bit")
FAMILIES = ("llama", "qwen2", "gemma2", "opt", "gpt2", "bert", "roberta", "encoder", "bert_classifier")
BATCH = batch_of([[5, 6, 7], [8, 9, 10, 11]], [0, 1], [2, 3], candidates=[6, 7], labels=[0, 1])


def config(folder, bits, **options):
    options = {"adapter": "lora", "lora_targets": ("all-linear",)} | options
    return ModelConfig(name=str(folder), quantisation=bits, **options)


def loaded(folder, bits, **options):
    return load(config(folder, bits, **options), 2, gaussian)


def moved(folder, bits, **options):
    """A model whose adapter is no longer where it began."""
    model = loaded(folder, bits, **options)
    for name, tensor in model.parameters().items():
        tensor.data.add_(0.1 * gaussian(f"moved {name}", tuple(tensor.shape)))
    return model


def message(folder, bits, **options):
    with pytest.raises(ModelError) as caught:
        loaded(folder, bits, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def packed_layers(module):
    return {name: layer for name, layer in module.named_modules() if type(layer).__name__.startswith("Decoding")}


def frozen_bytes(model):
    """Every bit of the base: parameters that are not tuned, and all that packed layers save."""
    tensors = {name: p.data for name, p in model.module.named_parameters() if name not in model.trainable}
    for name, layer in packed_layers(model.module).items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in layer.state_dict().items()}
    return {name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def logits(model):
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        return model.module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def unpacked(model):
    """The same model with ordinary layers that hold the decoded weights."""
    twin = copy.deepcopy(model.module)
    for name, layer in packed_layers(twin).items():
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data = layer.decoded(torch.float32)
        if layer.bias is not None:
            plain.bias.data = layer.bias.data
        twin.set_submodule(name, plain.requires_grad_(False))
    return type(model)(twin, model.tokenizer, model.kind, model.trainable, model.base_id)


# What is refused


def test_packed_weights_cannot_be_tuned(tiny):
    assert message(tiny("llama"), "4bit", adapter="none", lora_targets=()) == (
        "model.quantisation = '4bit' was given with model.adapter = 'none': packed weights stay as they are, so set "
        "model.adapter = 'lora' to have something to tune"
    )


def test_without_bitsandbytes_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    assert message(tiny("llama"), "8bit") == (
        "model.quantisation = '8bit' needs bitsandbytes, which is not installed: pip install '.[quant]'"
    )


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["none", *BITS])
def test_a_checkpoint_that_comes_quantised_is_refused(tiny, tmp_path, bits):
    model = loaded(tiny("llama"), "8bit")
    model.module.get_base_model().config.save_pretrained(tmp_path)
    save_file({}, tmp_path / "model.safetensors")
    model.tokenizer.save_pretrained(tmp_path)
    assert message(tmp_path, bits) == (
        f"model {str(tmp_path)!r}: its checkpoint is quantised already; give the one that it was made from, with "
        "model.quantisation"
    )


@needs_bitsandbytes
@pytest.mark.skipif(not MAPS.exists(), reason=f"the system does not show what is mapped ({MAPS})")
@pytest.mark.parametrize("bits", BITS)
def test_what_is_not_packed_leaves_the_checkpoint(tiny, tmp_path, bits):
    """While a tensor points into the mapped file, its pages stay resident beside what was packed of them."""
    shutil.copytree(tiny("llama"), tmp_path / "own")
    model = loaded(tmp_path / "own", bits)
    assert str(tmp_path) not in MAPS.read_text() and torch.isfinite(logits(model)).all()


@needs_bitsandbytes
def test_a_packed_base_is_not_merged(tiny, tmp_path):
    with pytest.raises(ModelError) as caught:
        export(loaded(tiny("llama"), "4bit"), tmp_path / "out", merged=True)
    assert str(caught.value) == (
        "export with merged weights was asked for, but the base is packed (4bit), and packing the sum anew would round "
        "the adapter away: export without merging, and merge with PEFT into an unpacked base"
    )


# What is packed


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_are_packed_and_adapters_are_float32(tiny, family, bits):
    state = torch.get_rng_state()
    model = loaded(tiny(family), bits)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert not any(p.requires_grad for p in model.module.parameters())
    assert {p.dtype for p in model.parameters().values()} == {torch.float32}
    stored = {"8bit": torch.int8, "4bit": torch.uint8}[bits]
    layers = packed_layers(model.module)
    assert {layer.weight.dtype for layer in layers.values()} == {stored}
    assert layers and all(f"{name}.weight" not in model.trainable for name in layers)
    left = [name for name, m in model.module.named_modules() if type(m) is torch.nn.Linear and ".lora_" not in name]
    assert all(
        name.endswith((".decoder", "classifier.modules_to_save.default", "original_module", "head")) for name in left
    )
    assert model.quantisation == bits


@needs_bitsandbytes
@pytest.mark.parametrize("shape", [(24, 16), (6, 80), (64, 64), (5, 100), (3, 7), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_4_bits_decode_to_levels_times_the_scale_of_their_block(shape, dtype):
    import bitsandbytes

    layer = bitsandbytes.nn.Linear4bit(shape[1], shape[0], quant_type="nf4", compress_statistics=False)
    layer.weight.data = gaussian("weight", shape)
    quantised.decode_at_use(layer.to("cpu"))
    bytes_, state = layer.weight.data.view(-1), layer.weight.quant_state
    levels = state.code[torch.stack([bytes_ >> 4, bytes_ & 15], 1).view(-1).long()][: shape[0] * shape[1]]
    scales = state.absmax.repeat_interleave(64)[: len(levels)]
    assert torch.equal(layer.decoded(dtype), (levels * scales).view(shape).to(dtype))


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_decoded_weights_are_within_half_a_level_of_the_checkpoints(tiny, family, bits):
    """int8 levels lie 1/127 of a row's largest magnitude apart (after rounding to float16), NF4's at most 0.304."""
    found, base = loaded(tiny(family), bits).module, load(ModelConfig(name=tiny(family)), 2, gaussian).module
    for name, layer in packed_layers(found).items():
        weight = base.get_submodule(name.removeprefix("base_model.model.").removesuffix(".base_layer")).weight
        weight = weight.T if family == "gpt2" else weight  # GPT-2 keeps its weights as [in, out]
        rows = weight if bits == "8bit" else weight.reshape(-1, 64)
        wrong = (layer.decoded(torch.float32) - weight).view_as(rows).abs() / rows.abs().amax(1, keepdim=True)
        assert wrong.max() <= {"8bit": 1 / 254 + 1e-3, "4bit": 0.153}[bits]


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_those_of_decoded_weights_in_the_models_dtype(tiny, bits, dtype):
    for layer in packed_layers(loaded(tiny("opt"), bits, dtype=dtype).module).values():
        input = gaussian("input", (3, layer.in_features)).to(getattr(torch, dtype))
        expected = torch.nn.functional.linear(input, layer.decoded(input.dtype), layer.bias)
        assert layer(input).dtype == input.dtype
        assert torch.equal(layer(input), expected)


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_unpacked_twin(tiny, family, bits):
    model = moved(tiny(family), bits)
    assert torch.equal(logits(model), logits(unpacked(model)))


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_unpacked_twin(tiny, bits):
    model = moved(tiny("opt"), bits)
    gradients = []
    for each in (model, unpacked(model)):
        tensors = each.parameters()
        for tensor in tensors.values():
            tensor.requires_grad_(True)
        gradients.append(torch.autograd.grad(loss(each, BATCH), list(tensors.values())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.abs().max() > 0


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_packed_model_writes(tiny, bits):
    model = moved(tiny("llama"), bits)
    assert generate(model, [[5, 6, 7]], 4) == generate(unpacked(model), [[5, 6, 7]], 4)


def test_what_bitsandbytes_says_when_peft_imports_it_is_not_heard(caplog):
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    assert not caplog.records


# What never changes


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["llama", "bert_classifier"])
def test_steps_leave_the_base_as_it_was_to_the_bit(tiny, family, bits):
    model = moved(tiny(family), bits)
    space = space_of(model.module, model.trainable)
    weights, perturber, before = (
        bound_weights(model.module, space),
        Perturber(model.module, space, 2**12),
        frozen_bytes(model),
    )
    start, base = digest(weights), model_digest(model.module)

    def loss_at(point):
        with perturber.at(point):
            return float(loss(model, BATCH))

    loss_at(None)
    assert (digest(weights), model_digest(model.module)) == (start, base)
    probe = two_point(one_by_one(loss_at), [1, 2], 1e-3, Distribution.GAUSSIAN)
    assert (digest(weights), model_digest(model.module)) == (start, base)
    apply(space, weights, [Update(probe.keys, -0.01 * probe.scalars, 3)], Distribution.GAUSSIAN)
    assert digest(weights) != start and model_digest(model.module) != base
    assert frozen_bytes(model) == before


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_projected_gradients_are_those_of_the_unpacked_twin(tiny, bits):
    model = moved(tiny("llama"), bits)
    probes = []
    for each in (model, unpacked(model)):
        perturber = Perturber(each.module, space_of(each.module, each.trainable))

        def loss_at(point, each=each, perturber=perturber):
            with perturber.at(point):
                return float(loss(each, BATCH))

        probes.append(two_point(one_by_one(loss_at), range(8), 1e-3, Distribution.GAUSSIAN))
    assert np.array_equal(probes[0].scalars, probes[1].scalars)
    assert probes[0].scalars.any()


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_perturbed_packed_model_is_the_model_at_the_perturbed_point(tiny, bits):
    """An evaluation replaces tuned tensors where torch functions use them; those of packed layers are not tuned."""
    model = moved(tiny("gpt2"), bits)
    space, point = space_of(model.module, model.trainable), Perturbation(5, 0.05, Distribution.RADEMACHER)
    with Perturber(model.module, space).at(point):
        found = logits(model)
    update = Update((5,), np.array([0.05], np.float32), 0)
    apply(space, bound_weights(model.module, space), [update], Distribution.RADEMACHER)
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)


# What a base is recognised by


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_base_packed_twice_has_one_digest_on_any_number_of_threads(bits, tiny):
    known, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model = loaded("starter" if (starter_folder() / "model.safetensors").is_file() else tiny("llama"), bits)
            found.append(model_digest(model.module))
            logits(model)
            found.append(model_digest(model.module))
    finally:
        torch.set_num_threads(known)
    assert len(set(found)) == 1


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_every_part_of_a_packed_layer_changes_the_digest(tiny, bits):
    model = loaded(tiny("llama"), bits)
    weight = next(iter(packed_layers(model.module).values())).weight
    scales = [weight.SCB] if bits == "8bit" else [weight.quant_state.absmax, weight.quant_state.code]
    parts = [weight.data, *scales]
    seen = {model_digest(model.module)}
    for part in parts:
        flat = part.view(-1).view(torch.uint8)
        for byte in (0, len(flat) - 1):
            flat[byte] ^= 1
            seen.add(model_digest(model.module))
            flat[byte] ^= 1
    assert len(seen) == 1 + 2 * len(parts)
    assert model_digest(model.module) in seen


@needs_bitsandbytes
def test_bases_of_other_bits_have_other_digests(tiny):
    options = [("8bit", "float32"), ("4bit", "float32"), ("8bit", "bfloat16"), ("4bit", "bfloat16")]
    digests = {model_digest(loaded(tiny("llama"), bits, dtype=dtype).module) for bits, dtype in options}
    assert len(digests | {model_digest(load(ModelConfig(name=tiny("llama"), adapter="lora"), 2, gaussian).module)}) == 5


# Runs


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_a_run_is_replayed_and_exported(tiny_recipe, tmp_path, bits):
    recipe = tiny_recipe(model={"adapter": "lora", "quantisation": bits})
    summary = experiment.run(recipe, Machine(), tmp_path / "run", lambda *heard: None)
    trajectory = run_store.trajectory_of(tmp_path / "run")
    model, space = load_replayed(trajectory, recipe.model.name, None, None)
    weights = bound_weights(model.module, space)
    assert digest(weights).hex() == summary["state_digest"]
    assert model.quantisation == bits
    export(model, tmp_path / "out")
    adapter = load_peft_weights(str(tmp_path / "out"), device="cpu")
    assert {name.replace(".weight", ".default.weight") for name in adapter} == set(weights)
    assert all(
        torch.equal(tensor, weights[name.replace(".weight", ".default.weight")]) for name, tensor in adapter.items()
    )


@needs_bitsandbytes
def test_a_replay_on_another_base_is_refused(tiny_recipe, tmp_path):
    recipe = tiny_recipe(model={"adapter": "lora", "quantisation": "8bit"})
    experiment.run(recipe, Machine(), tmp_path / "run", lambda *heard: None)
    trajectory = run_store.trajectory_of(tmp_path / "run")
    trajectory.header.model["quantisation"] = "4bit"
    with pytest.raises(DigestMismatch, match=r"the weights' digest of the base .* is .*, expected "):
        load_replayed(trajectory, recipe.model.name, None, None)


@needs_bitsandbytes
def test_a_16_bit_rest_runs(tiny_recipe, tmp_path):
    recipe = tiny_recipe(model={"adapter": "lora", "quantisation": "4bit", "dtype": "bfloat16"})
    summary = experiment.run(recipe, Machine(), tmp_path / "run", lambda *heard: None)
    assert summary["rounds"] == 3 and np.isfinite(summary["loss"])


@needs_bitsandbytes
@pytest.mark.parametrize("bits", BITS)
def test_two_point_steps_lower_the_loss(tiny, bits):
    model = loaded(tiny("llama"), bits)
    space = space_of(model.module, model.trainable)
    weights, perturber = bound_weights(model.module, space), Perturber(model.module, space)

    def loss_at(point):
        with perturber.at(point):
            return float(loss(model, BATCH))

    before = loss_at(None)
    for step in range(40):
        probe = two_point(one_by_one(loss_at), range(4 * step, 4 * step + 4), 1e-3, Distribution.RADEMACHER)
        apply(space, weights, [Update(probe.keys, -2e-3 * probe.scalars, step)], Distribution.RADEMACHER)
    assert loss_at(None) < 0.7 * before
