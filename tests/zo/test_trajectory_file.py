"""A trajectory is read back whole; a damaged, foreign or crafted one is told as what it is, and nothing but a
TrajectoryError comes out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fuzzed import fuzzed
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save
from tiny_trajectories import HEADER, INF, NAN, SHARED, assert_same, frames, int32, lived, record, written

from seedtune.errors import TrajectoryError
from seedtune.zo import trajectory_file
from seedtune.zo.noise import Distribution, values
from seedtune.zo.trajectory import Header
from seedtune.zo.trajectory_file import parse


@pytest.mark.parametrize("header", [HEADER, SHARED])
def test_what_was_written_is_read(header, tmp_path):
    records, _, _ = lived(header)
    assert_same(parse(written(header, records)), header, records)
    path = tmp_path / "trajectory.seedtune"
    path.write_bytes(written(header, records))
    assert_same(trajectory_file.read(path), header, records)


@fuzzed(25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=4), st.data())
def test_any_rounds_are_read_as_written(shapes, data):
    number = st.floats(width=32, allow_infinity=False)
    records = []
    for i, shape in enumerate(shapes):
        count = int(np.prod(shape))
        scalars = data.draw(st.lists(number, min_size=count, max_size=count))
        records.append(record(i, range(0, 3 * shape[0], 3), np.array(scalars, np.float32).reshape(shape)))
    assert_same(parse(written(HEADER, records)), HEADER, records)


def test_tensors_that_the_base_lacks_travel_in_the_header():
    initial = {"head.weight": values(1, 0, 6, Distribution.GAUSSIAN).view(2, 3), "head.bias": torch.ones(2).half()}
    header = replace(HEADER, initial=initial)
    assert_same(parse(written(header, [])), header, [])


def test_a_round_costs_little():
    sizes = np.diff(frames(written(HEADER, [record(i, [1, 4], np.zeros((2, 10, 1))) for i in range(3)])))
    assert sizes.max() <= 400 + 2 * (4 + 40 + 8)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(TrajectoryError) as caught:
        trajectory_file.read(tmp_path / "none")
    assert str(caught.value) == f"trajectory {tmp_path / 'none'}: cannot be read: No such file or directory"


def test_headers_from_before_pools_have_none():
    payload = trajectory_file.header_frame(HEADER)
    assert b"key_pool" in payload and parse(payload).header.key_pool == 0
    fields = {name: value for name, value in vars(HEADER).items() if name not in ("initial", "key_pool")}
    assert Header(**fields) == HEADER


def sealed(*payloads: bytes) -> bytes:
    """A file whose chain is right whatever its payloads are."""
    data = b""
    for payload in payloads:
        data += trajectory_file._frame(data[-16:], payload)
    return data


def header_payload(**changed) -> bytes:
    fields = {name: value for name, value in vars(HEADER).items() if name != "initial"} | changed
    return save({"none": torch.zeros(0)}, {"header": json.dumps(fields)})


def round_payload(number: int | str = 0, **changed) -> bytes:
    arrays = {
        "clients": int32(1, 4),
        "scalars": torch.zeros(2, 1, 1),
        "factors": torch.ones(2, dtype=torch.float64),
        "digest": torch.zeros(16, dtype=torch.uint8),
    }
    return save({name: t for name, t in (arrays | changed).items() if t is not None}, {"round": str(number)})


def fails(data: bytes) -> str:
    with pytest.raises(TrajectoryError) as caught:
        parse(data, "it")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("it: ")
    return message.removeprefix("it: ")


def test_each_frame_stands_on_the_one_before():
    records, _, _ = lived(HEADER)
    data = written(HEADER, records)
    ends = frames(data)
    one, two = data[ends[0] : ends[1]], data[ends[1] : ends[2]]
    assert fails(data[: ends[0]] + two + one).startswith("truncated or altered after 0 whole rounds")
    assert fails(data[: ends[1]] + two + two).startswith("truncated or altered after 2 whole rounds")
    other = written(replace(HEADER, seed=18), [])
    assert fails(other + one).startswith("truncated or altered after 0 whole rounds")


def test_every_prefix_is_a_shorter_trajectory_or_says_what_is_whole():
    records, _, _ = lived(HEADER)
    data = written(HEADER, records[:3])
    ends = frames(data)
    assert ends[-1] == len(data)
    for size in range(len(data)):
        num_frames = sum(end <= size for end in ends)
        if size == 0:
            assert fails(data[:size]) == "is empty, not a trajectory"
        elif size in ends:
            assert_same(parse(data[:size]), HEADER, records[: num_frames - 1])
        elif num_frames == 0:
            assert fails(data[:size]) == "is not a trajectory, or its first bytes were altered or cut off"
        else:
            assert fails(data[:size]) == (
                f"truncated or altered after {num_frames - 1} whole rounds; take a fresh copy, or the run's folder"
            )


def test_every_altered_byte_is_found():
    data = bytearray(written(HEADER, [record(0, [1], [[[0.5]]]), record(1, [], np.zeros((0, 1, 1)))]))
    ends = frames(bytes(data))
    for place in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            data[place] ^= flip
            message = fails(bytes(data))
            data[place] ^= flip
            whole = sum(end <= place for end in ends) - 1
            assert message.startswith(f"truncated or altered after {whole} whole" if whole >= 0 else "is not a traj")
    assert fails(bytes(data) + b"\0").startswith("truncated or altered after 2 whole rounds")


@pytest.mark.parametrize(("name", "other", "known"), [("format", 1, 2), ("format", 3, 2), ("noise_version", 2, 1)])
def test_a_file_from_another_time_is_named_as_one(name, other, known):
    data = written(replace(HEADER, **{name: other}), [])
    assert fails(data) == f"has {name} {other}, this seedtune knows {known}: install the one that wrote it"


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "does not begin with a trajectory's header"),
        (b"\xff" * 40, "does not begin with a trajectory's header"),
        (save({"a": torch.zeros(1)}), "does not begin with a trajectory's header"),
        (save({"a": torch.zeros(1)}, {"header": "7"}), "does not begin with a trajectory's header"),
        (save({"a": torch.zeros(1)}, {"header": "[" * 100_000}), "does not begin with a trajectory's header"),
        (save({"a": torch.zeros(1)}, {"header": "{}"}), "has format None, this seedtune knows 2: install the one "),
        (header_payload(distribution="cauchy"), "its header is not complete: 'cauchy' is not a valid Distribution"),
        (header_payload(colour="red"), "its header is not complete: Header.__init__() got an unexpected keyword "),
        (header_payload(base=3), "its header is not complete: base = 3"),
        (header_payload(base_digest="AB" * 16), f"its header is not complete: base_digest = '{'AB' * 16}'"),
        (header_payload(space=None), "its header is not complete: space = None"),
        (header_payload(seed=-1), "its header is not complete: seed = -1"),
        (header_payload(seed=0.5), "its header is not complete: seed = 0.5"),
        (header_payload(seed=2**63), "its header is not complete: seed = 9223372036854775808"),
        (header_payload(keys="any"), "its header is not complete: keys = 'any'"),
        (header_payload(key_pool=-1), "its header is not complete: key_pool = -1"),
        (header_payload(key_pool=True), "its header is not complete: key_pool = True"),
        (header_payload(model=[]), "its header is not complete: model = []"),
        (header_payload(num_choices="2"), "its header is not complete: num_choices = '2'"),
        (header_payload(inputs={"recipe": "AB" * 16}), "its header is not complete: inputs = {'recipe': 'ABAB"),
        (header_payload(inputs=[]), "its header is not complete: inputs = []"),
        (header_payload(inputs={"x" * 65: "ab" * 16}), "its header is not complete: inputs = {'xxx"),
        (header_payload(versions={"torch": 2}), "its header is not complete: versions = {'torch': 2}"),
        (header_payload(versions={"torch": "2" * 65}), "its header is not complete: versions = {'torch': '222"),
    ],
)
def test_headers_that_cannot_be(payload, message):
    assert fails(sealed(payload)).startswith(message)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\0" * 8, "is not readable: "),
        (save({"a": torch.zeros(1)}, {"round": "0"}), "is not readable: KeyError('clients')"),
        (round_payload("one"), "is not readable: ValueError(\"invalid literal for int() with base 10: 'one'\")"),
        (round_payload(clients=torch.ones(2)), "is not readable: ValueError('clients is float32 [2]')"),
        (round_payload(scalars=torch.ones(2)), "is not readable: ValueError('scalars is float32 [2]')"),
        (round_payload(factors=torch.ones(2)), "is not readable: ValueError('factors is float32 [2]')"),
        (round_payload(factors=None), "is not readable: KeyError('factors')"),
        (round_payload(1), "breaks a rule: rounds follow each other"),
        (round_payload(-1), "breaks a rule: rounds follow each other"),
        (round_payload(clients=int32(4, 1)), "breaks a rule: clients are sorted counts"),
        (round_payload(clients=int32(4, 4)), "breaks a rule: clients are sorted counts"),
        (round_payload(clients=int32(-4, 1)), "breaks a rule: clients are sorted counts"),
        (round_payload(clients=int32(0, 1, 2)), "breaks a rule: there is a set of scalars for each client, or one for"),
        (
            round_payload(clients=int32(), scalars=torch.zeros(2, 1, 1)),
            "breaks a rule: there is a set of scalars for each client, or one for all",
        ),
        (round_payload(factors=torch.ones(1).double()), "breaks a rule: there is a factor for each set of scalars"),
        (
            round_payload(scalars=torch.full((2, 1, 1), INF)),
            "breaks a rule: scalars are finite, or NaN where a step was",
        ),
        (round_payload(factors=torch.tensor([1, NAN]).double()), "breaks a rule: factors are finite"),
        (round_payload(digest=torch.zeros(15, dtype=torch.uint8)), "breaks a rule: a digest has 16 bytes"),
    ],
)
def test_records_that_cannot_be(payload, message):
    assert parse(sealed(header_payload(), round_payload())).records[0].clients == (1, 4)
    assert fails(sealed(header_payload(), payload)).startswith(f"the record of round 0 {message}")


junk = st.binary(max_size=80)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
some_headers = st.dictionaries(st.sampled_from([*vars(HEADER), "other"]), json_values, max_size=4).map(
    lambda changed: header_payload(**changed)
)
tensors = st.builds(
    lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([torch.int32, torch.float32, torch.float64, torch.uint8, torch.bfloat16, torch.float8_e4m3fn]),
)
some_rounds = st.dictionaries(
    st.sampled_from(["clients", "scalars", "factors", "digest", "other"]), st.none() | tensors, max_size=3
).map(lambda changed: round_payload(0, **changed))
lying = st.builds(  # a safetensors header that declares what is not there
    lambda shape, end: (
        lambda text: len(text).to_bytes(8, "little") + text
    )(json.dumps({"clients": {"dtype": "I32", "shape": shape, "data_offsets": [0, end]}}).encode()),
    st.lists(st.integers(0, 2**62), max_size=3),
    st.integers(0, 2**62),
)  # fmt: skip


@fuzzed(150)
@given(some_headers | junk | lying, st.lists(some_rounds | junk | lying, max_size=2), junk)
@example(header_payload(split={"\n": None}), [], b"")
@example(header_payload(noise_version="\n"), [], b"")
def test_nothing_but_trajectory_errors_comes_out(first, rounds, tail):
    for data in (tail, sealed(first, *rounds), sealed(header_payload(), *rounds), sealed(header_payload()) + tail):
        try:
            parse(data)
        except TrajectoryError as error:
            assert "\n" not in str(error)


def test_a_length_of_gigabytes_is_not_believed():
    assert fails(b"\xff\xff\xff\xff" + b"\0" * 100).startswith("is not a trajectory")
    assert fails(written(HEADER, []) + b"\xff\xff\xff\xff").startswith("truncated or altered after 0 whole rounds")
