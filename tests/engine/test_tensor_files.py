"""Files of weights and checkpoints, compared with those of the safetensors library."""

import pytest
import safetensors
import safetensors.torch
import torch

from fukami.engine.tensor_files import DTYPE_NAMES, encode_tensors


def test_files_equal_those_of_safetensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(size, generator=generator) for name, size in [("b", (3, 5)), ("a", ()), ("あ", (0, 2))]
    }
    for metadata in (None, {"state": '{"step": "π"}'}):
        assert b"".join(encode_tensors(tensors, metadata)) == safetensors.torch.save(tensors, metadata)


def test_every_dtype_and_memory_layout_is_read_by_safetensors(tmp_path):
    values = torch.arange(-4, 8).reshape(3, 4)
    tensors = {str(dtype): values.to(dtype).T for dtype in DTYPE_NAMES}
    tensors |= {"scalar": torch.tensor(True), "empty": torch.zeros(2, 0), "view": torch.randn(4, 5)[1:, ::2]}
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"".join(encode_tensors(tensors, {"a": "b"})))
    loaded = safetensors.torch.load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
        assert loaded[name].data_ptr() % value.element_size() == 0
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata() == {"a": "b"}


def test_other_dtypes_are_an_error():
    with pytest.raises(TypeError, match=r"scale is a tensor of torch.complex128, .* use torch.bool"):
        encode_tensors({"scale": torch.zeros(2, dtype=torch.complex128)})


def test_tensors_are_not_copied():
    value = torch.zeros(1000)
    parts = encode_tensors({"a": value})
    value += 1
    assert bytes(parts[-1]) == value.numpy().tobytes()
