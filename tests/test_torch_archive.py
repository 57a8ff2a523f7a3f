"""Checkpoints of PyTorch, read without it: as torch.load reads them, and whatever is in them nothing is carried out."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
from fai_fast._torch_archive import CorruptArchive, RefusedArchive, StoredTensor, arrays_of, read_archive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

KINDS = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.uint16,
    torch.uint32,
)


def saved(tmp_path, value, **options):
    path = tmp_path / "a.pth"
    torch.save(value, path, **options)
    return path


def assert_as_torch(found, path, expected=None):
    if expected is None:
        expected = torch.load(path, map_location="cpu", weights_only=True)
    assert list(found) == list(expected)
    for key, value in expected.items():
        value = value.float() if value.dtype == torch.bfloat16 else value
        np.testing.assert_array_equal(found[key], value.detach().numpy(), err_msg=str(key), strict=True)
        assert found[key].flags.writeable


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_number_is_read_as_torch_reads_it(tmp_path, kind, protocol):
    values = (100 * torch.rand(3, 5)).to(kind)
    state = {
        "whole": values,
        "scalar": values[0, 0].clone(),
        "empty": values[:0].clone(),
        "nothing": torch.zeros(0, dtype=kind),
    }
    path = saved(tmp_path, state, pickle_protocol=protocol)
    # torch.load itself takes no other protocol for certain.
    assert_as_torch(arrays_of(read_archive(path)), path, None if protocol == 2 else state)


def test_views_of_one_storage_are_read_as_torch_reads_them(tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    state = {
        "base": base,
        "part": base[1:, ::2],
        "turned": base.permute(2, 0, 1),
        "expanded": base[0, 0, :1].expand(7, 4),
        "channels": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "tied": base,
    }
    path = saved(tmp_path, state)
    found = arrays_of(read_archive(path))
    assert_as_torch(found, path)
    assert np.shares_memory(found["base"], found["tied"])


def test_tensors_with_attributes_of_their_own_are_read(tmp_path):
    plain, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    plain.note, parameter.note = "a", {"b": 1}
    path = saved(tmp_path, {"plain": plain, "parameter": parameter})
    assert b"_rebuild_from_type_v2" in path.read_bytes()
    assert_as_torch(arrays_of(read_archive(path)), path)


def test_what_trainers_save_beside_the_tensors_is_read(tmp_path):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    value = {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "scheduler": {"steps": collections.Counter({1: 2}), "gammas": [0.1, -5, 1 << 70, 1.5, None, True]},
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "names": ("a", "é", {1, 2}),
        "bytes": b"abc",
    }
    path = saved(tmp_path, value)
    found = read_archive(path)
    expected = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    assert found["scheduler"] == expected["scheduler"]
    assert found["size"] == expected["size"]
    assert found["names"][:2] == ("a", "é")
    assert found["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    state = arrays_of(found["model"])
    assert list(state) == list(network.state_dict())
    for key, tensor in network.state_dict().items():
        np.testing.assert_array_equal(state[key], tensor.numpy())
    np.testing.assert_array_equal(found["parameter"].read(), np.ones(2, np.float32))


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.zeros(2, dtype=torch.complex64), "ComplexFloatStorage"),
        (np.zeros(2), "numpy"),
        (torch.nn.Linear(1, 1), "Linear"),
        (print, "print"),
    ],
)
def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path, value, named):
    with pytest.raises(RefusedArchive, match=named):
        read_archive(saved(tmp_path, {"a": torch.zeros(1), "b": value}))


def archive(pickled: bytes, members=(), compression=zipfile.ZIP_STORED) -> bytes:
    """An archive as torch.save writes it, around any pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as writer:
        writer.writestr("a/data.pkl", pickled)
        for name, content in members:
            writer.writestr(f"a/{name}", content)
    return file.getvalue()


def name(module: str, function: str) -> bytes:
    return f"c{module}\n{function}\n".encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(offset=0, shape=(2,), strides=(1,), count=2, key=b"0", function="_rebuild_tensor_v2") -> bytes:
    """The instructions that make one tensor."""

    def numbers(values) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(X\x07\x00\x00\x00storage" + name("torch", "FloatStorage")
    storage += b"X" + struct.pack("<I", len(key)) + key + b"X\x03\x00\x00\x00cpu" + number(count) + b"tQ"
    called = storage + number(offset) + numbers(shape) + numbers(strides) + b"\x89N"
    return name("torch._utils", function) + b"(" + called + b"tR"


FLOATS = [("data/0", struct.pack("<2f", 1, 2))]


def test_the_archive_of_these_tests_is_one_that_torch_reads(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(
        archive(b"\x80\x02" + tensor() + b".", [*FLOATS, ("version", b"3\n"), ("byteorder", b"little")])
    )
    assert torch.load(path, weights_only=True).tolist() == read_archive(path).read().tolist() == [1, 2]


RUNS = (
    name("os", "system") + b"(X\x04\x00\x00\x00exittR",
    name("builtins", "eval") + b"(X\x01\x00\x00\x001tR",
    name("builtins", "getattr") + b"(tR",
    name("torch", "load") + b"(tR",
    name("torch._utils", "_import_dotted_name") + b"(tR",
    name("torch.hub", "load") + b"(tR",
    b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93)R",
    b"(X\x04\x00\x00\x00exitios\nsystem\n",
    b"(cos\nsystem\nX\x04\x00\x00\x00exito",
    b"\x82\x01",
    b"Pstorage\n",
    b"}\x92",
)


@pytest.mark.parametrize("instructions", RUNS)
def test_nothing_but_tensors_is_ever_made(tmp_path, instructions):
    path = tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x02" + instructions + b".", FLOATS))
    with pytest.raises((RefusedArchive, CorruptArchive)):
        read_archive(path)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (tensor(shape=(3,)), "up to number 2 of 2"),
        (tensor(offset=1), "up to number 2 of 2"),
        (tensor(offset=-1), "no whole numbers"),
        (tensor(strides=(-1,)), "no whole numbers"),
        (tensor(shape=(1 << 40,), strides=(0,)), "of which there are 2"),
        (tensor(shape=(1 << 30, 1 << 30), strides=(0, 0)), "of which there are 2"),
        (tensor(strides=(1, 1)), "1 sides and 2 strides"),
        (tensor(count=3), "3 numbers, of which there are 2"),
        (tensor(key=b"1"), "a/data/1 is missing"),
        (tensor(key=b"../../x"), "is missing"),
        (name("torch._utils", "_rebuild_tensor_v2") + b")R", "not well-formed"),
        (name("torch._utils", "_rebuild_parameter") + b"(NtR", "not well-formed"),
        (b"NNR", "not well-formed"),
        (b"N)b", "not well-formed"),
        (b"h\x05", "not well-formed"),
        (b"t", "not well-formed"),
        (b"\x86", "not well-formed"),
        (b"Ne", "not well-formed"),
        (b"}}}s", "not well-formed"),
        (b"(KKa", "not well-formed"),
        (b"\xff", "not well-formed"),
    ],
)
def test_a_pickle_that_is_not_well_formed_is_an_error(tmp_path, instructions, message):
    path = tmp_path / "a.pth"
    path.write_bytes(archive(b"\x80\x02" + instructions + b".", FLOATS))
    with pytest.raises(CorruptArchive, match=message):
        read_archive(path)


def test_a_file_never_becomes_much_more_than_it_is(tmp_path):
    path = tmp_path / "a.pth"
    good = b"\x80\x02" + tensor() + b"."
    # Compressed: a few bytes that would be many.
    path.write_bytes(archive(good, [("data/0", bytes(1 << 20))], zipfile.ZIP_DEFLATED))
    with pytest.raises(CorruptArchive, match=r"larger than the file|is compressed"):
        read_archive(path)
    # A pickle that is too long.
    path.write_bytes(archive(b"\x80\x02" + b"N0" * (1 << 23) + b"N.", FLOATS))
    with pytest.raises(CorruptArchive, match="its pickle has more than"):
        read_archive(path)
    # An index for the memo that would need as many places.
    path.write_bytes(archive(b"\x80\x02Nr\xff\xff\xff\xff.", FLOATS))
    assert read_archive(path) is None
    # Any number of dicts that are copies of a large one.
    copied = b"}(" + b"".join(b"K" + bytes([key]) + b"N" for key in range(200)) + b"uq\x00" + b"]("
    copied += (name("collections", "OrderedDict") + b"h\x00\x85R") * 1000 + b"e"
    path.write_bytes(archive(b"\x80\x02" + copied + b".", FLOATS))
    assert len({id(item) for item in read_archive(path)}) == 1


def test_numbers_of_the_other_byte_order_are_read(tmp_path):
    path = tmp_path / "a.pth"
    members = [("data/0", struct.pack(">2f", 1.5, -2)), ("byteorder", b"big")]
    path.write_bytes(archive(b"\x80\x02" + tensor() + b".", members))
    assert read_archive(path).read().tolist() == [1.5, -2]
    path.write_bytes(archive(b"\x80\x02" + tensor() + b".", [*FLOATS, ("byteorder", b"odd")]))
    with pytest.raises(CorruptArchive, match="byte order"):
        read_archive(path)


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_pickle_of_any_bytes_gives_plain_values_or_an_error(tmp_path, data):
    good = pickle.dumps({"a": [1, (2.0, None)], "b": "c"}, protocol=2)[:-1] + tensor() + b"\x86."
    changed = bytearray(good)
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=6)):
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.pth"
    path.write_bytes(archive(bytes(changed), FLOATS))
    try:
        found = read_archive(path)
    except (CorruptArchive, RefusedArchive):
        return
    assert type(found).__module__ in ("builtins", "fai_fast._torch_archive")
    if isinstance(found, StoredTensor):
        assert found.read().shape == found.shape
