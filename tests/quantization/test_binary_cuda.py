"""The Triton kernels of the 1-bit layers equal the reference kernels bit for bit.

Without a GPU, Triton's interpreter runs them in a separate process, because it has to be enabled before Triton is
imported. The kernels are also compiled without a GPU.
"""

import importlib.util
import itertools
import multiprocessing
import random
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from fukami.models import binary_convnet
from fukami.quantization import binary_layers, binary_reference

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is published for Linux only"
)

SHAPES = list(
    itertools.product(
        [1, 3],  # images
        [(5, 7), (6, 3)],
        [1, 31, 64, 65, 128, 200],  # channels
        [1, 10, 16, 17, 64, 70],  # outputs
        [(1, 1, 0), (1, 2, 0), (1, 1, 1), (3, 1, 0), (3, 1, 1), (3, 2, 1), (3, 3, 2), (5, 1, 2), (5, 3, 1), (5, 2, 2)],
    )
)


@pytest.fixture(scope="module")
def interpreter():
    """A process with Triton's interpreter."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(torch.set_num_threads, 1).result()
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def check(request):
    """Call a check below with a device: a GPU, or the CPU in the interpreter's process."""
    if request.param == "interpreter":
        pool = request.getfixturevalue("interpreter")
        return lambda function, *arguments: pool.submit(function, "cpu", *arguments).result()
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return lambda function, *arguments: function("cuda", *arguments)


def _assert_equal(result, expected):
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def _make_random_words(*shape):
    return binary_reference.pack_words(torch.rand(shape) < 0.5)


def _check_convolution(device, images, size, channels, outputs, layer):
    from fukami.quantization import binary_cuda

    torch.manual_seed(0)
    kernel, stride, padding = layer
    x, weight = (
        _make_random_words(images, *size, channels).to(device),
        _make_random_words(outputs, kernel, kernel, channels).to(device),
    )
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    half = channels * kernel**2 // 2
    count_offsets = F.pad(torch.randint(-half - 3, -half + 4, (3, outputs)), (0, -outputs % 16), value=1).to(device)
    offset_index = torch.randint(3, (rows, columns), device=device)
    for num_terms in None, torch.randint(2 * half + 1, (3,), device=device):
        expected = binary_reference.convolve(
            x,
            binary_reference.prepack_weights(weight),
            count_offsets,
            offset_index,
            num_terms,
            outputs,
            stride,
            padding,
        )
        _assert_equal(
            binary_cuda.convolve(
                x, binary_cuda.prepack_weights(weight), count_offsets, offset_index, num_terms, outputs, stride, padding
            ),
            expected,
        )


def _check_convolution_in_large_blocks(device):
    from fukami.quantization import binary_cuda

    with mock.patch.object(binary_cuda, "MIN_BUSY_BLOCKS", 0):
        _check_convolution(device, 2, (7, 9), 65, 40, (3, 1, 1))
        _check_convolution(device, 1, (1, 67), 200, 70, (1, 1, 0))  # as a linear layer with 67 samples


def _check_signs(device, channels, dtype, layout):
    from fukami.quantization import binary_cuda

    torch.manual_seed(0)
    x = torch.randint(-2, 3, (2, channels, 3, 25)).to(dtype)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-7, 0.5])
    x.view(-1)[: len(special)] = special.to(dtype)
    x = x.to(device, memory_format=layout)
    threshold = torch.randint(-2, 3, (channels,)).float().to(device)
    threshold[channels // 2] = -torch.inf
    threshold[0] = 1e-40
    direction = torch.randint(2, (channels,), device=device) * 2.0 - 1
    _assert_equal(binary_cuda.pack_signs(x, threshold, direction), binary_reference.pack_signs(x, threshold, direction))


def _check_denormal_numbers(device):
    from fukami.quantization import binary_cuda

    x = torch.tensor([1e-40, 2e-40, 3e-40, 0], device=device).view(4, 1, 1, 1)
    words = binary_cuda.pack_signs(x, torch.tensor([2e-40], device=device), torch.ones(1, device=device))
    assert words.flatten().tolist() == [0, 1, 1, 0]


def _check_pooling(device, size, stride, channels):
    from fukami.quantization import binary_cuda

    torch.manual_seed(0)
    x, min_mask = _make_random_words(3, 7, 6, channels).to(device), _make_random_words(channels).to(device)
    _assert_equal(binary_cuda.max_pool(x, min_mask, size, stride), binary_reference.max_pool(x, min_mask, size, stride))


def _check_network(device, options):
    from fukami.quantization import binary_cuda

    torch.manual_seed(0)
    network = binary_convnet(widths=(16, 16, 40, 70), hidden=(24, 24), size=8, **options).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            tensor.uniform_(0.5, 2.0)
    x = torch.randn(3, 3, 8, 8)
    expected = network(x) if device == "cpu" else None
    packed = binary_layers.pack_model(network).to(device)
    with mock.patch.object(binary_layers, "get_kernels", return_value=binary_cuda):
        result = packed(x.to(device))
    if expected is None:
        with mock.patch.object(binary_layers, "get_kernels", return_value=binary_reference):
            expected = binary_layers.pack_model(network).to(device)(x.to(device))
    _assert_equal(result, expected)


def _check_kernel_selection(device):
    from fukami.quantization import binary_cuda

    with mock.patch.object(binary_layers, "importlib") as imports:
        imports.import_module.return_value = binary_cuda
        assert binary_layers.get_kernels.__wrapped__(torch.device(device)) is binary_cuda


@pytest.mark.slow
@pytest.mark.parametrize("shape", random.Random(0).sample(SHAPES, 30), ids=str)
def test_convolve(check, shape):
    check(_check_convolution, *shape)


def test_convolve_in_large_blocks(check):
    check(_check_convolution_in_large_blocks)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("channels", [1, 31, 65])
def test_sign(check, channels, dtype, layout):
    check(_check_signs, channels, dtype, layout)


def test_sign_of_denormal_numbers(check):
    check(_check_denormal_numbers)


@pytest.mark.parametrize(("size", "stride", "channels"), [(2, 2, 31), (2, 1, 65), (3, 2, 64), (3, 3, 200)])
def test_pool(check, size, stride, channels):
    check(_check_pooling, size, stride, channels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"end_layers": "binary"}, {"scaling_factors": True, "learned_thresholds": True}], ids=str
)
def test_network(check, options):
    check(_check_network, options)


def test_kernels_are_selected(check):
    check(_check_kernel_selection)


@pytest.mark.parametrize("target", [80, 90])
@pytest.mark.parametrize(
    ("name", "types", "constants", "instruction"),
    [
        ("_convolve_kernel", "*i64 *i64 *i64 *i64 - *i32", {"num_terms": None, "PIXELS": 32}, "popc.b32"),
        ("_convolve_kernel", "*i64 *i64 *i64 *i64 - *i32", {"num_terms": None, "PIXELS": 8}, "redux.sync"),
        ("_convolve_kernel", "*i64 *i64 *i64 *i64 *i64 *fp32", {"PIXELS": 32}, "popc.b32"),
        ("_pack_signs_kernel", "*fp32 *fp32 *fp32 *i32", {"SIGNS": 64, "pixel_step": 1}, "setp.ge.f32"),
        ("_pack_signs_kernel", "*fp16 *fp32 *fp32 *i32", {"SIGNS": 64, "channel_step": 1}, "redux.sync"),
        ("_max_pool_kernel", "*i64 *i64 *i64", {"WORDS": 256}, "ld.global.b64"),
    ],
)
def test_compiles_without_a_gpu(name, types, constants, instruction, target, tmp_path, monkeypatch):
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fukami.quantization import binary_cuda

    if "nvidia" not in backends:
        pytest.skip("this build of Triton has no compiler for NVIDIA GPUs")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(binary_cuda, name)
    signature = dict(itertools.zip_longest(kernel.arg_names, types.split(), fillvalue="i32"))
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(key),): value for key, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=binary_cuda.LAUNCH_OPTIONS)
    assert instruction in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 0
