"""What the memory benchmark rests on: the shapes' sizes, weights in one copy's memory, and a graph that is noticed."""

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import memory
from seedtune.analysis import memory as peaks
from seedtune.analysis import memory_cases
from seedtune.analysis.memory_cases import METHODS, Case
from seedtune.analysis.one_step import graphs_refused, two_point_step, without_graph
from seedtune.errors import ModelError
from seedtune.models.random_models import SHAPES, random_model, save_base, shape, skeleton
from seedtune.zo.noise import Distribution

NUM_PARAMETERS = {
    "stories-15m": 15_191_712,
    "stories-42m": 41_689_600,
    "stories-110m": 109_529_856,
    "opt-350m": 331_196_416,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "open_llama_3b": 3_426_473_600,
}
PAPER_LORA_PARAMETERS = 42_598_400  # arXiv 2402.05926: open_llama_3b_v2, r = 128


def case(model: str, **changed) -> Case:
    fields = dict(
        model=model, dtype="float32", tuned="full", num_tokens=12, num_scored=4, num_layers=0,
        targets=("q_proj", "v_proj"), lora_rank=2, device="cpu",
    )  # fmt: skip
    return Case(**(fields | changed))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """The path of a config.json, as a user gives it."""
    folder = tmp_path_factory.mktemp("shape")
    LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)  # fmt: skip
    return str(folder / "config.json")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_sizes(name: str) -> None:
    module = skeleton(shape(name), torch.bfloat16)
    assert sum(p.numel() for p in module.parameters()) == NUM_PARAMETERS[name]
    assert all(p.is_meta for p in module.parameters())


def test_lora_on_queries_and_values_has_as_many_parameters_as_the_paper_says() -> None:
    paper = case("open_llama_3b", tuned="lora", lora_rank=128)
    assert memory.size_of(paper).adapters == PAPER_LORA_PARAMETERS


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_random_model_is_repeatable_tied_and_leaves_the_global_generator_alone(tiny: str, tuned: str) -> None:
    before = torch.get_rng_state()
    models = [random_model(shape(tiny), torch.bfloat16, case(tiny, tuned=tuned).adapter()) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, second = (dict(model.module.named_parameters()) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    module = models[0].module
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    assert memory.size_of(case(tiny, tuned=tuned)).adapters == (
        sum(p.numel() for p in models[0].parameters().values()) if tuned == "lora" else 0
    )


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_steps_move_tuned_tensors_alone(tiny: str, tuned: str, method: str) -> None:
    work = peaks.built(case(tiny, tuned=tuned))
    before = {name: p.detach().clone() for name, p in work.model.module.named_parameters()}
    call = peaks.steps(work, (method,))[method]
    for _ in range(2):
        call()
    moved = {name for name, p in work.model.module.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert moved <= set(work.model.trainable) and bool(moved) == (method != "inference")
    assert all(p.grad is None for p in work.model.module.parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", METHODS)
def test_losses_stay_finite_in_16_bits(tiny: str, dtype: str, method: str) -> None:
    call = peaks.steps(peaks.built(case(tiny, dtype=dtype)), (method,))[method]
    assert all(0 < call() < 100 for _ in range(3))


def test_a_graph_in_a_two_point_step_is_an_error(tiny: str) -> None:
    work = peaks.built(case(tiny, tuned="lora"))
    work.model.module.requires_grad_(True)  # the base too: tuned tensors are replaced by values without a history
    two_point_step(work, 0, Distribution.GAUSSIAN)
    work.model.module.forward = torch.enable_grad()(work.model.module.forward)
    with pytest.raises(ModelError, match=r"built an autograd graph: torch\.\w+ \[.*\] was kept for a backward pass"):
        two_point_step(work, 0, Distribution.GAUSSIAN)


def test_a_graph_that_keeps_no_tensor_is_an_error_too() -> None:
    weight = torch.ones(2, requires_grad=True)
    with graphs_refused():
        total = weight + 1
    message = "ended in an autograd graph (AddBackward0): run the forward without gradients"
    with pytest.raises(ModelError, match=re.escape(message)):
        without_graph(total)
    assert without_graph(total.detach()) is not None


def test_a_loss_that_is_not_finite_is_an_error(tiny: str) -> None:
    work = peaks.built(case(tiny))
    work.model.module.get_input_embeddings().weight.data.fill_(torch.nan)
    for method in METHODS:
        with pytest.raises(ModelError, match=f"{method}: the loss is nan: such a step moves nothing"):
            peaks.steps(work, (method,))[method]()


def test_what_does_not_fit_is_not_started(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_cases, "bytes_free", lambda device: int(10e9))
    monkeypatch.setattr(memory, "in_fresh_process", lambda *given: pytest.fail("was started"))
    large = case("open_llama_3b", num_tokens=256)
    found = memory.tables([large], num_turns=1)
    rows = found["not started: too large for free memory"]
    assert [row["skipped"] for row in rows] == list(METHODS)
    assert rows[0]["needs, MB"] > 4 * NUM_PARAMETERS["open_llama_3b"] // 10**6 - 1 and rows[0]["free, MB"] == 10_000
    assert rows[3]["needs, MB"] > 4 * rows[0]["needs, MB"] * 0.9
    assert "peak memory over inference" not in found
    halved = replace(large, dtype="float16")
    assert memory.shortage(halved, "inference") is None
    loaded = memory.shortage(replace(halved, quantisation="4bit"), "inference")  # a mapped checkpoint, and packing
    assert loaded["needs, MB"] > 6 * NUM_PARAMETERS["open_llama_3b"] // 10**6


def test_tables_hold_skipped_methods_beside_measured_ones(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found_peaks = {"inference": 100e6, "two-point": 110e6, "SGD": 200e6}

    def measured(function, case, *arguments):
        if function is memory.measure_seconds:
            return {method: [1.0, 2.0] for method in arguments[0]}
        return {"peak": found_peaks[arguments[0]], "libraries": 20e6, "kernels": 5e6, "weights": 55e6}

    monkeypatch.setattr(memory, "in_fresh_process", measured)
    monkeypatch.setattr(memory, "shortage", lambda case, method: {"skipped": method} if method == "AdamW" else None)
    found = memory.tables([case(tiny)], num_turns=2)
    row = found["peak memory over inference"][0]
    assert [row[m] for m in ("inference, MB", "two-point", "SGD", "AdamW")] == [100, 1.1, 2.0, "skipped"]
    part = found["what each peak is made of, MB"][1]
    assert (part["method"], part["rest"], part["peak"], part["share of weights"]) == ("two-point", 30, 110, "50 %")
    times = found["seconds of a step over one forward"][0]
    assert times["two-point"].median == 1.0 and times["AdamW"] == "skipped"
    assert memory.PAPER in found
    found = memory.tables([case(tiny)], num_turns=1, methods=METHODS[:2])
    assert "SGD" not in found["peak memory over inference"][0] | found["seconds of a step over one forward"][0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """A folder that a model with the starter's vocabulary is loaded from, wide enough to be packed."""
    folder = str(tmp_path_factory.mktemp("base"))
    save_base(shape("opt-125m", num_layers=1), folder)
    return folder


@pytest.mark.parametrize("base", ["none", "8bit", "4bit"])
def test_loaded_bases_step_and_hold_what_their_storage_takes(checkpoint: str, base: str) -> None:
    if base != "none" and find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed: pip install '.[quant]'")
    loaded = case("opt-125m", tuned="lora", dtype="bfloat16", num_layers=1, quantisation=base, folder=checkpoint)
    found = peaks.measure_peak(loaded, "two-point")
    assert found["peak"] == max(found["loading"], found["steps"])
    linear = 12 * 768**2  # of the one layer
    scales = {"none": 0, "8bit": 4 * 9 * 768, "4bit": linear / 16}[base]  # rows: 4 x 768, 3,072 and 768
    saved = {"none": 0, "8bit": linear, "4bit": linear * 1.5}[base] - scales
    size = memory.size_of(loaded)
    assert found["weights"] == pytest.approx(2 * size.model + 4 * size.adapters - saved, abs=2000)


def test_one_process_a_model_writes_the_checkpoint(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(memory, "in_fresh_process", lambda function, case, folder: written.append((function, folder)))
    given = ["--model", tiny, "opt-125m", "--quantisation", "none", "4bit", "--device", "cpu"]
    cases = memory.cases_of(memory.parser().parse_args(given))
    assert [(c.tuned, c.quantisation, c.folder) for c in cases] == [("lora", "none", ""), ("lora", "4bit", "")] * 2
    cases = memory.with_checkpoints(cases, str(tmp_path))
    assert len({c.folder for c in cases}) == len(written) == 2 and cases[0].folder == cases[1].folder
    assert cases[0].adapter().name == cases[0].folder and cases[1].adapter().quantisation == "4bit"
    assert [function for function, _ in written] == [peaks.save_checkpoint] * 2
    in_place = [case(tiny)]
    assert memory.with_checkpoints(in_place, str(tmp_path)) == in_place and len(written) == 2


def test_table_of_bases_compares_with_bfloat16(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"none": 50e6, "4bit": 15e6}

    def measured(function, case, method):
        kernels = 5e6 if method == "two-point" else 0
        steps = 20e6 + kernels + 2 * weights[case.quantisation]
        return {"peak": 200e6, "loading": 90e6, "steps": steps, "libraries": 20e6, "kernels": kernels,
                "weights": weights[case.quantisation]}  # fmt: skip

    monkeypatch.setattr(memory, "in_fresh_process", measured)
    cases = [case(tiny, tuned="lora", dtype="bfloat16", quantisation=base, folder="f") for base in weights]
    plain, packed = memory.tables(cases, 0, METHODS[:2])[memory.BASES]
    assert (plain["weights"], plain["loading"], plain["inference"], plain["two-point"]) == (50, 70, 100, 1.04)
    assert (packed["weights / bfloat16"], packed["inference / bfloat16"]) == (0.3, 0.3)
    assert (packed["base"], packed["two-point"]) == ("4bit", 1.1)
    alone = memory.tables(cases[1:], 0, METHODS[:2])[memory.BASES]
    assert alone[0]["weights / bfloat16"] == "not measured"


def test_bases_on_a_gpu_are_refused(tiny: str) -> None:
    given = memory.parser().parse_args(["--model", tiny, "--quantisation", "8bit", "--device", "cuda"])
    message = "--quantisation was given with --device cuda: bases are packed on a CPU; add --device cpu"
    with pytest.raises(ModelError, match=message):
        memory.cases_of(given)


def test_measurements_in_this_process(tiny: str) -> None:
    found = peaks.measure_peak(case(tiny), "two-point")
    counting = (
        1 << 20
    )  # Linux counts resident pages on each processor and adds up later: a peak may be read lower again
    assert found["libraries"] > 0 and found["peak"] >= found["libraries"] - counting and found["kernels"] >= -counting
    assert found["weights"] == 4 * memory.size_of(case(tiny)).model
    seconds = memory.measure_seconds(case(tiny), METHODS, 2)
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys(METHODS, 2)


def test_failures_in_a_fresh_process_are_repeated(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = peaks.subprocess.CompletedProcess([], 1, "", "Traceback\nModelError: a graph was built\n")
    monkeypatch.setattr(peaks.subprocess, "run", lambda *given, **options: failed)
    with pytest.raises(ModelError, match=r"all weights, 12: measure_peak failed: ModelError: a graph was built$"):
        peaks.in_fresh_process(peaks.measure_peak, case(tiny), "two-point")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "opt-125",
            "unknown model 'opt-125': did you mean 'opt-125m'? Known: llama-3.2-1b, llama-3.2-3b, open_llama_3b, ",
        ),
        ("empty.json", "no config of transformers ("),
        ("t5", "T5Config is not of a causal language model: give another config"),
    ],
)
def test_models_that_cannot_be_measured(tmp_path: Path, given: str, message: str) -> None:
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    name = str(tmp_path / given) if (tmp_path / given).exists() else given
    with pytest.raises(ModelError) as caught:
        memory.size_of(case(name))
    assert message in str(caught.value)


def test_targets_that_match_nothing(tiny: str) -> None:
    with pytest.raises(ModelError, match="'query' matches no linear module"):
        peaks.built(case(tiny, tuned="lora", targets=("query",)))


@pytest.mark.parametrize(("option", "least"), [("tokens", 2), ("scored", 1), ("turns", 0), ("lora-rank", 1)])
def test_counts_that_are_too_small(capsys: pytest.CaptureFixture, option: str, least: int) -> None:
    with pytest.raises(SystemExit):
        memory.parser().parse_args([f"--{option}", str(least - 1)])
    assert f"--{option}: {least - 1} was given: must be at least {least}" in capsys.readouterr().err
    assert memory.parser().parse_args([f"--{option}", str(least)])
