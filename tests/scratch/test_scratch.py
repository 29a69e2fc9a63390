"""Tests of the NumPy implementation: gradients against torch and finite differences, optimizers, parameter files."""

import os
import pickle
import re
import struct
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fukami import scratch
from fukami.errors import Error, UsageError
from fukami.scratch import layers

CONVOLUTIONS = [(7, 6, 3, 3, 1, 1), (7, 6, 3, 2, 2, 0), (9, 5, 2, 3, 2, 2), (6, 8, 1, 1, 1, 0), (5, 5, 1, 1, 2, 1)]
POOLINGS = [(6, 8, 2, 2, 2, 0), (7, 6, 3, 2, 2, 0), (7, 9, 3, 3, 2, 1), (5, 5, 3, 3, 1, 1), (6, 6, 2, 3, 3, 0)]


@pytest.fixture(autouse=True)
def random():
    np.random.seed(0)
    return np.random.default_rng(0)


def to_leaf(array):
    return torch.tensor(array, dtype=torch.float64, requires_grad=True)


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def compute_numerical_gradient(value, array, dout, step=1e-6):
    """Compute the gradient of ``(value() * dout).sum()`` at ``array`` by central differences."""
    gradient = np.zeros(array.shape)
    for index in np.ndindex(array.shape):
        original = array[index]
        array[index] = original + step
        upper = (value() * dout).sum()
        array[index] = original - step
        gradient[index] = (upper - (value() * dout).sum()) / (2 * step)
        array[index] = original
    return gradient


def small_network(**sizes):
    filters = {"filter_num": 4, "filter_size": 3, "pad": 1, "stride": 1}
    return scratch.DeepConvNet(
        **{f"conv_param_{number}": filters | {"pad": 2 if number == 4 else 1} for number in range(1, 7)}, **sizes
    )


# layers


@pytest.mark.parametrize(("h", "w", "kh", "kw", "stride", "pad"), CONVOLUTIONS)
@pytest.mark.parametrize("block", [1, layers.MAX_BLOCK_BYTES])
def test_convolution(random, monkeypatch, h, w, kh, kw, stride, pad, block):
    monkeypatch.setattr(layers, "MAX_BLOCK_BYTES", block)
    x, W, b = random.normal(size=(2, 3, h, w)), random.normal(size=(4, 3, kh, kw)), random.normal(size=4)
    layer = scratch.Convolution(W, b, stride, pad)
    y = layer.forward(x)
    dout = random.normal(size=y.shape)
    dx = layer.backward(dout)

    tx, tW, tb = to_leaf(x), to_leaf(W), to_leaf(b)
    ty = F.conv2d(tx, tW, tb, stride, pad)
    ty.backward(torch.tensor(dout))
    for ours, theirs in ((y, ty), (dx, tx.grad), (layer.dW, tW.grad), (layer.db, tb.grad)):
        assert_close(ours, theirs)
    for array, gradient in ((x, dx), (W, layer.dW), (b, layer.db)):
        np.testing.assert_allclose(
            gradient, compute_numerical_gradient(lambda: layer.forward(x), array, dout), rtol=1e-5, atol=1e-7
        )


@pytest.mark.parametrize(("h", "w", "pool_h", "pool_w", "stride", "pad"), POOLINGS)
def test_pooling(random, h, w, pool_h, pool_w, stride, pad):
    x = random.normal(size=(2, 3, h, w)) - 2  # mostly negative, so that zeros in the padding would be the maximum
    layer = scratch.Pooling(pool_h, pool_w, stride, pad)
    y = layer.forward(x)
    dout = random.normal(size=y.shape)
    dx = layer.backward(dout)

    tx = to_leaf(x)
    ty = F.max_pool2d(tx, (pool_h, pool_w), stride, pad)
    ty.backward(torch.tensor(dout))
    assert_close(y, ty)
    assert_close(dx, tx.grad)
    np.testing.assert_allclose(dx, compute_numerical_gradient(lambda: layer.forward(x), x, dout), rtol=1e-5, atol=1e-7)


def test_pooling_gives_equal_values_one_gradient():
    layer = scratch.Pooling(2, 2)
    layer.forward(np.zeros((1, 1, 4, 4)))
    assert layer.backward(np.ones((1, 1, 2, 2)))[0, 0].tolist() == [[1, 0, 1, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]


@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 2, 2)])
def test_affine(random, shape):
    x, W, b, dout = (random.normal(size=size) for size in (shape, (12, 4), (4,), (5, 4)))
    layer = scratch.Affine(W, b)
    y, dx = layer.forward(x), layer.backward(dout)

    tx, tW, tb = to_leaf(x), to_leaf(W), to_leaf(b)
    ty = tx.reshape(5, -1) @ tW + tb
    ty.backward(torch.tensor(dout))
    for ours, theirs in ((y, ty), (dx, tx.grad), (layer.dW, tW.grad), (layer.db, tb.grad)):
        assert_close(ours, theirs)
    np.testing.assert_allclose(
        layer.dW, compute_numerical_gradient(lambda: layer.forward(x), W, dout), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(("layer", "function"), [(scratch.Relu(), torch.relu), (scratch.Sigmoid(), torch.sigmoid)])
def test_activations(random, layer, function):
    x, dout = random.normal(size=(2, 3, 4, 4)), random.normal(size=(2, 3, 4, 4))
    y, dx = layer.forward(x), layer.backward(dout)
    tx = to_leaf(x)
    ty = function(tx)
    ty.backward(torch.tensor(dout))
    assert_close(y, ty)
    assert_close(dx, tx.grad)
    np.testing.assert_allclose(dx, compute_numerical_gradient(lambda: layer.forward(x), x, dout), rtol=1e-5, atol=1e-7)


def test_sigmoid_does_not_overflow():
    assert scratch.Sigmoid().forward(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_dropout():
    x = np.ones((200, 50))
    layer = scratch.Dropout(0.3)
    y = layer.forward(x)
    assert set(np.unique(y)) == {0.0, 1.0}  # not rescaled
    assert 0.68 < y.mean() < 0.72
    np.testing.assert_array_equal(layer.backward(x), layer.mask)
    np.testing.assert_allclose(layer.forward(x, train_flg=False), 0.7)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 2)])
@pytest.mark.parametrize("train_flg", [True, False])
def test_batch_normalization(random, shape, train_flg):
    features = int(np.prod(shape[1:]))
    x, dout = random.normal(2, 3, size=shape), random.normal(size=shape)
    gamma, beta, mean = (random.normal(size=features) for _ in range(3))
    var = random.uniform(1, 2, size=features)
    layer = scratch.BatchNormalization(gamma, beta, running_mean=mean, running_var=var)
    y, dx = layer.forward(x, train_flg), layer.backward(dout)

    tx, tg, tb = to_leaf(x), to_leaf(gamma), to_leaf(beta)
    flat = tx.reshape(6, -1)
    ty = F.batch_norm(flat, torch.tensor(mean), torch.tensor(var), tg, tb, training=train_flg, eps=1e-6)
    ty.backward(torch.tensor(dout.reshape(6, -1)))
    assert_close(y, ty.reshape(shape))
    for ours, theirs in ((dx, tx.grad), (layer.dgamma, tg.grad), (layer.dbeta, tb.grad)):
        assert_close(ours, theirs)
    if train_flg:
        assert_close(layer.running_mean, 0.9 * mean + 0.1 * x.reshape(6, -1).mean(axis=0))
        assert_close(layer.running_var, 0.9 * var + 0.1 * x.reshape(6, -1).var(axis=0))
        expected = compute_numerical_gradient(lambda: scratch.BatchNormalization(gamma, beta).forward(x), x, dout)
        np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("one_hot", [True, False])
def test_softmax_with_loss(random, one_hot):
    x, labels = 50 * random.normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    layer = scratch.SoftmaxWithLoss()
    loss = layer.forward(x, np.eye(4)[labels] if one_hot else labels)
    tx = to_leaf(x)
    expected = F.cross_entropy(tx, torch.tensor(labels))
    expected.backward()
    assert loss == layer.loss == pytest.approx(expected.item(), rel=1e-6)
    assert_close(layer.y, torch.softmax(tx, 1))
    assert_close(layer.backward(), tx.grad)
    assert_close(layer.backward(dout=3), 3 * tx.grad)


# network


def test_gradient_equals_torch(random):
    network = small_network()
    x, labels = random.normal(size=(3, 1, 28, 28)), np.array([1, 7, 3])
    grads = network.gradient(x, labels)
    params = {key: to_leaf(value) for key, value in network.params.items()}
    y = torch.tensor(x)
    for number in range(1, 7):
        pad = 2 if number == 4 else 1
        y = torch.relu(F.conv2d(y, params[f"W{number}"], params[f"b{number}"], padding=pad))
        y = F.max_pool2d(y, 2) if number % 2 == 0 else y
    y = torch.relu(y.flatten(1) @ params["W7"] + params["b7"]) * torch.tensor(network.layers[17].mask)
    y = (y @ params["W8"] + params["b8"]) * torch.tensor(network.layers[19].mask)
    loss = F.cross_entropy(y, torch.tensor(labels))
    loss.backward()
    assert network.last_layer.loss == pytest.approx(loss.item(), rel=1e-6)
    assert grads.keys() == network.params.keys()
    for key, gradient in grads.items():
        assert_close(gradient, params[key].grad)


def test_architecture_and_initialization_equal_the_note():
    network = scratch.DeepConvNet()
    types = {0: "Convolution", 1: "Relu", 4: "Pooling", 15: "Affine", 17: "Dropout", 18: "Affine", 19: "Dropout"}
    assert {index: type(network.layers[index]).__name__ for index in types} == types
    for number, index in enumerate((0, 2, 5, 7, 10, 12, 15, 18), 1):
        assert network.layers[index].W is network.params[f"W{number}"]
        assert network.layers[index].b is network.params[f"b{number}"]
    np.random.seed(0)
    fan_ins = [9, 144, 144, 288, 288, 576, 1024, 50]
    for number, fan_in in enumerate(fan_ins, 1):
        W = network.params[f"W{number}"]
        np.testing.assert_array_equal(W, np.sqrt(2.0 / fan_in) * np.random.randn(*W.shape))
    assert all(value.dtype == np.float64 for value in network.params.values())


def test_other_sizes(random):
    network = small_network(input_dim=(3, 32, 24), hidden_size=7, output_size=5)
    x = random.normal(size=(2, 3, 32, 24))
    assert network.predict(x).shape == (2, 5)
    assert network.params["W7"].shape == (4 * 4 * 3, 7)
    with pytest.raises(Error, match=r"the shape \(2, 1, 28, 28\), expected \('N', 3, 32, 24\)"):
        network.predict(np.zeros((2, 1, 28, 28)))
    with pytest.raises(Error, match="too small"):
        small_network(input_dim=(1, 1, 1))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_outputs_and_gradients_have_the_dtype_of_the_images(random, dtype):
    network = small_network()
    x = random.random(size=(5, 1, 28, 28))
    expected = network.predict(x)
    y = network.predict(x.astype(dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, atol=40 * np.finfo(dtype).eps)
    assert all(value.dtype == dtype for value in network.gradient(x.astype(dtype), np.arange(5)).values())


def test_integer_images_use_the_dtype_of_the_parameters(random):
    network = small_network()
    x = random.integers(0, 255, size=(2, 1, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(network.predict(x), network.predict(x.astype(np.float64)))


def test_predict_and_accuracy_count_every_image(random):
    network = small_network()
    x = random.random(size=(230, 1, 28, 28)).astype(np.float32)
    predictions = network.predict(x).argmax(axis=1)
    np.testing.assert_array_equal(
        predictions, np.concatenate([network.predict(x[i : i + 1]).argmax(1) for i in range(230)])
    )
    t = predictions.copy()
    t[-20:] += 1
    assert network.accuracy(x, t) == network.accuracy(x, t, batch_size=64) == 210 / 230
    assert network.accuracy(x, np.eye(11)[t]) == 210 / 230


def test_float16_conversion_in_place_as_in_the_note(random):
    network = small_network()
    x = random.random(size=(20, 1, 28, 28)).astype(np.float32)
    before = network.predict(x)
    for param in network.params.values():
        param[...] = param.astype(np.float16)
    after = network.predict(x.astype(np.float16))
    assert network.layers[0].W.dtype == np.float64
    np.testing.assert_array_equal(network.layers[0].W, network.layers[0].W.astype(np.float16))
    assert 0 < abs(after - before).max() < 0.02


# optimizers and trainer


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (scratch.SGD(0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (scratch.Momentum(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8)),
        (scratch.Nesterov(0.1, 0.8), lambda p: torch.optim.SGD(p, 0.1, momentum=0.8, nesterov=True)),
        (scratch.AdaGrad(0.1), lambda p: torch.optim.Adagrad(p, 0.1, eps=1e-7)),
        (scratch.RMSprop(0.1, 0.9), lambda p: torch.optim.RMSprop(p, 0.1, alpha=0.9, eps=1e-7)),
        (scratch.Adam(0.1, 0.8, 0.95), lambda p: torch.optim.Adam(p, 0.1, betas=(0.8, 0.95), eps=1e-12)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_optimizer_steps_equal_torch(random, ours, theirs):
    params = {"W1": random.normal(size=(3, 2)), "b1": random.normal(size=2)}
    before = dict(params)
    tensors = {key: to_leaf(value) for key, value in params.items()}
    optimizer = theirs(tensors.values())
    for _ in range(4):
        grads = {key: random.normal(size=value.shape) for key, value in params.items()}
        ours.update(params, grads)
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[key])
        optimizer.step()
    for key, value in params.items():
        assert value is before[key]
        np.testing.assert_allclose(
            value, tensors[key].detach().numpy(), rtol=1e-6, atol=2e-5 if "Adam" in str(ours) else 0
        )


def test_adam_by_hand():
    params, adam = {"b1": np.zeros(1)}, scratch.Adam(lr=0.1, beta1=0.5, beta2=0.75)
    adam.update(params, {"b1": np.array([2.0])})  # m 1, v 1, corrected to 2 and 4
    np.testing.assert_allclose(params["b1"], -0.1, rtol=1e-6)
    adam.update(params, {"b1": np.array([-2.0])})  # m -0.5, v 1.75, corrected to -2/3 and 4
    np.testing.assert_allclose(params["b1"], -0.1 + 0.1 / 3, rtol=1e-6)


def test_optimizers_keep_the_dtype_of_the_parameters(random):
    for dtype in (np.float16, np.float32, np.float64):
        params = {"W1": np.ones(3, dtype)}
        scratch.Adam(lr=0.01).update(params, {"W1": np.array([1e-3, -1, 0], np.float16)})
        assert params["W1"].dtype == dtype
        np.testing.assert_allclose(params["W1"], [0.99, 1.01, 1], rtol=2e-3)


def test_training_improves_loss_and_accuracy(capsys):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = np.pad(np.kron(images.reshape(-1, 1, 8, 8), np.ones((3, 3))), ((0, 0), (0, 0), (2, 2), (2, 2)))
    x = (x / 16).astype(np.float32)
    network = small_network()
    trainer = scratch.Trainer(
        network, x[:800], labels[:800], x[800:1000], labels[800:1000],
        epochs=3, mini_batch_size=32, optimizer="adam", optimizer_param={"lr": 0.005},
    )  # fmt: skip
    trainer.train()
    assert len(trainer.train_loss_list) == 3 * 25
    assert np.mean(trainer.train_loss_list[-25:]) < np.mean(trainer.train_loss_list[:25])
    assert len(trainer.train_acc_list) == len(trainer.test_acc_list) == 3
    assert trainer.test_acc_list[-1] == network.accuracy(x[800:1000], labels[800:1000]) > 0.6
    assert capsys.readouterr().out.count("=== epoch:") == 3


def test_trainer_accepts_all_optimizers():
    x, t = np.zeros((4, 1, 28, 28), np.float32), np.zeros(4, int)
    for name in ("SGD", "Momentum", "nesterov", "AdaGrad", "rmsprop", "ADAM"):
        trainer = scratch.Trainer(small_network(), x, t, x, t, 1, 2, name, {"lr": 0.01}, None, verbose=False)
        trainer.train()
        assert type(trainer.optimizer).__name__.lower() == name.lower()
    with pytest.raises(UsageError, match="'adm'; did you mean 'adam'"):
        scratch.Trainer(small_network(), x, t, x, t, optimizer="adm")


# parameter files


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype.newbyteorder("=")
        assert ours[key].flags.c_contiguous
        assert ours[key].flags.writeable
        np.testing.assert_array_equal(ours[key], value)


@pytest.mark.parametrize("name", ["params.pkl", "params.safetensors"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_saved_parameters_are_loaded_unchanged(tmp_path, name, dtype):
    network, other = small_network(), small_network()
    for key, value in network.params.items():
        value[...] = value.astype(dtype)
        other.params[key][...] = 0
    network.save_params(tmp_path / name)
    other.load_params(tmp_path / name)
    assert_equal(other.params, network.params)
    assert_equal(scratch.read_params(tmp_path / name), network.params)
    assert other.layers[15].W is other.params["W7"]
    other.params["W7"][...] = 1  # params are still the arrays of the layers, not copies
    assert (other.layers[15].W == 1).all()


def test_the_format_is_detected_by_content(tmp_path):
    network = small_network()
    network.save_params(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").rename(tmp_path / "a.pkl")
    assert_equal(scratch.read_params(tmp_path / "a.pkl"), network.params)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("mapping", [dict, OrderedDict])
@pytest.mark.parametrize("numpy1", [False, True])
def test_pickles_of_every_protocol(tmp_path, random, protocol, mapping, numpy1):
    array = random.normal(size=(2, 3, 4))
    params = mapping(
        W1=array, W2=np.asfortranarray(array), W3=array.transpose(1, 0, 2), W4=array[:, ::2], b1=array[0].astype(">f4"),
        b2=np.float16([1, 2]), b3=np.array(3.0),
    )  # fmt: skip
    content = pickle.dumps(params, protocol)
    if numpy1:  # use the module names of NumPy 1; in protocol 4 and later, the length precedes the name
        for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
            old_name = name.replace(b"_core", b"core")
            content = content.replace(bytes([len(name)]) + name, bytes([len(old_name)]) + old_name)
            content = content.replace(name, old_name)
        content = content if protocol < 4 else content[:2] + content[11:]  # remove the frame, whose length has changed
    assert (b"_core" in content) != numpy1
    (tmp_path / "params.pkl").write_bytes(content)
    assert_equal(scratch.read_params(tmp_path / "params.pkl"), params)


def test_pickles_of_python_2(tmp_path):
    """Python 2 pickles bytes as strings, which are read as Latin-1."""
    data = struct.pack("<2d", 1.5, -2.0)
    content = (
        b"\x80\x02}U\x02W1cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(data)]) + data + b"tbs."
    )
    (tmp_path / "params.pkl").write_bytes(content)
    assert_equal(scratch.read_params(tmp_path / "params.pkl"), {"W1": np.array([1.5, -2.0])})


class Call:
    """Object that is pickled as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(marker):
    """Objects whose unpickling would create a file or allocate memory, by the name of the callable."""
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "getattr": Call(getattr, "", "upper"),
        "Popen": Call(subprocess.Popen, ["touch", str(marker)]),
        "numpy.load": Call(np.load, str(marker)),
        "numpy.memmap": Call(np.memmap, str(marker), "float64", "w+", 0, (4,)),
        "numpy.testing._private.utils.runstring": Call(np.testing.runstring, f"open({str(marker)!r}, 'w')", {}),
        "numpy._core.multiarray.scalar": np.float64(1),
        "pathlib": Path(marker),
        "bytearray": Call(bytearray, 2**40),
    }


@pytest.mark.parametrize("function", hostile("marker"))
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [True, False])
def test_hostile_pickles_are_not_executed(tmp_path, function, protocol, nested):
    marker = tmp_path / "marker"
    payload = hostile(marker)[function]
    (tmp_path / "params.pkl").write_bytes(pickle.dumps({"W1": payload} if nested else payload, protocol))
    network = small_network()
    before = {key: value.copy() for key, value in network.params.items()}
    with pytest.raises(Error, match=rf"it refers to \S*{re.escape(function)}") as error:
        network.load_params(tmp_path / "params.pkl")
    assert "params.pkl" in str(error.value)
    assert not marker.exists()
    assert_equal(network.params, before)


def build_pickle(*operations):
    """Build a pickle of ``{"W1": result of the operations}``."""
    return b"\x80\x02}X\x02\x00\x00\x00W1" + b"".join(operations) + b"s."


ORDER = b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
DTYPE = b"cnumpy\ndtype\nX\x02\x00\x00\x00f8\x89\x88\x87R" + ORDER
EMPTY = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
HUGE = b"\x8a\x08" + struct.pack("<q", 2**60)
BOMBS = {
    "a huge shape": build_pickle(EMPTY, b"(K\x01", HUGE, b"\x85", DTYPE, b"\x89C\x08", bytes(8), b"tb"),
    "ndarray itself": build_pickle(b"cnumpy\nndarray\n", HUGE, b"\x85\x85R"),
    "a huge dtype": build_pickle(b"cnumpy\ndtype\nX\x0a\x00\x00\x00V999999999\x89\x88\x87R"),
    "an array that is never filled": build_pickle(EMPTY),
    "a key whose hash takes 2**40 steps": build_pickle(
        b"}N\x85q\x00", *(b"h\x00h\x00\x86q\x00" for _ in range(40)), b"K\x01s"
    ),
    "a set": build_pickle(b"\x8f(K\x01\x90"),
    "a huge memo": build_pickle(b"Nr\xff\xff\xff\x7f"),
    "a huge length": build_pickle(b"\x96", struct.pack("<Q", 2**40), b"abc"),
    "one buffer for many arrays": b"\x80\x02}("
    + b"".join(
        b"X\x01\x00\x00\x00"
        + bytes([97 + index])
        + (EMPTY + b"(K\x01K\x64\x85" + DTYPE + b"\x89")
        + (b"B\x20\x03\x00\x00" + bytes(800) + b"q\x09" if index == 0 else b"h\x09")
        + b"tb"
        for index in range(26)
    )
    + b"u.",
    "copies of a dictionary": b"\x80\x02ccollections\nOrderedDict\n}\x85R.",
    "a call with many arguments": build_pickle(b"cnumpy\ndtype\n(", b"K\x00" * 100, b"tR"),
    "a state for the class": build_pickle(b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb"),
    "an extension": build_pickle(b"\x82\x01"),
    "a persistent id": build_pickle(b"K\x01Q"),
    "a list": pickle.dumps([np.ones(2)]),
    "an array": pickle.dumps(np.ones(2)),
    "a number for an array": pickle.dumps({"W1": 3}),
    "a number for a name": pickle.dumps({1: np.ones(2)}),
    "an array of objects": pickle.dumps({"W1": np.array([None, {}], dtype=object)}),
    "an array of records": pickle.dumps({"W1": np.zeros(2, "f8,f8")}),
    "an array of text": pickle.dumps({"W1": np.array(["a"])}),
    "an array of integers": pickle.dumps({"W1": np.arange(3)}),
    "a nested dictionary": pickle.dumps({"params": {"W1": np.ones(2)}}),
    "nothing": b"",
    "text": b"hello, these are no parameters",
    "half a pickle": pickle.dumps({"W1": np.ones(100)})[:300],
    "half a safetensors header": struct.pack("<Q", 2**50) + b'{"W1":',
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_broken_files_are_rejected(tmp_path, content):
    (tmp_path / "params.pkl").write_bytes(content)
    with pytest.raises(Error, match=r"params\.pkl cannot be loaded: .+; expected safetensors or a pickled dict"):
        scratch.read_params(tmp_path / "params.pkl")


def test_nested_tuples_are_not_printed(tmp_path):
    """The error would contain 2^60 words if it printed tuples of tuples of the same tuple."""
    nested = b"K\x01\x85q\x01" + b"".join(b"h\x01h\x01\x86q\x01" for _ in range(60))
    (tmp_path / "params.pkl").write_bytes(
        build_pickle(EMPTY, b"(K\x01K\x01\x85cnumpy\ndtype\n", nested, b"\x85R\x89C\x01atb")
    )
    with pytest.raises(Error):
        scratch.read_params(tmp_path / "params.pkl")


def test_the_error_names_a_missing_file(tmp_path):
    with pytest.raises(Error, match=r"nowhere\.pkl cannot be loaded: .*No such file"):
        scratch.read_params(tmp_path / "nowhere.pkl")


@pytest.mark.parametrize("name", ["params.pkl", "params.safetensors"])
def test_parameters_of_another_network_are_rejected_without_changes(tmp_path, name):
    network, other = small_network(), small_network(hidden_size=7)
    before = {key: value.copy() for key, value in network.params.items()}
    other.params["W9"] = other.params.pop("b8")
    other.save_params(tmp_path / name)
    with pytest.raises(Error, match="does not match this network") as error:
        network.load_params(tmp_path / name)
    for message in (
        "W7 is (64, 7), expected (64, 50)",
        "b8 is missing, expected (10,)",
        "W9 is (10,), expected nothing",
    ):
        assert message in str(error.value)
    assert_equal(network.params, before)
    assert network.layers[0].W is network.params["W1"]


def test_safetensors_of_integers_are_rejected(tmp_path):
    from safetensors.numpy import save_file

    save_file({"W1": np.arange(3)}, tmp_path / "params.safetensors")
    with pytest.raises(Error, match="W1 is int64, not floating point"):
        scratch.read_params(tmp_path / "params.safetensors")


# cells of the note with changed imports

CLASS_CELL = """
import pickle
import numpy as np
from collections import OrderedDict
from fukami.scratch import *


class DeepConvNet:
    '''認識率99%以上の高精度なConvNet

    ネットワーク構成は下記の通り
        conv - relu - conv- relu - pool -
        conv - relu - conv- relu - pool -
        conv - relu - conv- relu - pool -
        affine - relu - dropout - affine - dropout - softmax
    '''
    def __init__(self, input_dim=(1, 28, 28),
                 conv_param_1 = {'filter_num':16, 'filter_size':3, 'pad':1, 'stride':1},
                 conv_param_2 = {'filter_num':16, 'filter_size':3, 'pad':1, 'stride':1},
                 conv_param_3 = {'filter_num':32, 'filter_size':3, 'pad':1, 'stride':1},
                 conv_param_4 = {'filter_num':32, 'filter_size':3, 'pad':2, 'stride':1},
                 conv_param_5 = {'filter_num':64, 'filter_size':3, 'pad':1, 'stride':1},
                 conv_param_6 = {'filter_num':64, 'filter_size':3, 'pad':1, 'stride':1},
                 hidden_size=50, output_size=10):
        # 重みの初期化===========
        # 各層のニューロンひとつあたりが、前層のニューロンといくつのつながりがあるか（TODO:自動で計算する）
        pre_node_nums = np.array([1*3*3, 16*3*3, 16*3*3, 32*3*3, 32*3*3, 64*3*3, 64*4*4, hidden_size])
        weight_init_scales = np.sqrt(2.0 / pre_node_nums)  # ReLUを使う場合に推奨される初期値

        self.params = {}
        pre_channel_num = input_dim[0]
        for idx, conv_param in enumerate([conv_param_1, conv_param_2, conv_param_3, conv_param_4, conv_param_5, conv_param_6]):
            self.params['W' + str(idx+1)] = weight_init_scales[idx] * np.random.randn(conv_param['filter_num'], pre_channel_num, conv_param['filter_size'], conv_param['filter_size'])
            self.params['b' + str(idx+1)] = np.zeros(conv_param['filter_num'])
            pre_channel_num = conv_param['filter_num']
        self.params['W7'] = weight_init_scales[6] * np.random.randn(64*4*4, hidden_size)
        self.params['b7'] = np.zeros(hidden_size)
        self.params['W8'] = weight_init_scales[7] * np.random.randn(hidden_size, output_size)
        self.params['b8'] = np.zeros(output_size)

        # レイヤの生成===========
        self.layers = []
        self.layers.append(Convolution(self.params['W1'], self.params['b1'],
                           conv_param_1['stride'], conv_param_1['pad']))
        self.layers.append(Relu())
        self.layers.append(Convolution(self.params['W2'], self.params['b2'],
                           conv_param_2['stride'], conv_param_2['pad']))
        self.layers.append(Relu())
        self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
        self.layers.append(Convolution(self.params['W3'], self.params['b3'],
                           conv_param_3['stride'], conv_param_3['pad']))
        self.layers.append(Relu())
        self.layers.append(Convolution(self.params['W4'], self.params['b4'],
                           conv_param_4['stride'], conv_param_4['pad']))
        self.layers.append(Relu())
        self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
        self.layers.append(Convolution(self.params['W5'], self.params['b5'],
                           conv_param_5['stride'], conv_param_5['pad']))
        self.layers.append(Relu())
        self.layers.append(Convolution(self.params['W6'], self.params['b6'],
                           conv_param_6['stride'], conv_param_6['pad']))
        self.layers.append(Relu())
        self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
        self.layers.append(Affine(self.params['W7'], self.params['b7']))
        self.layers.append(Relu())
        self.layers.append(Dropout(0.5))
        self.layers.append(Affine(self.params['W8'], self.params['b8']))
        self.layers.append(Dropout(0.5))

        self.last_layer = SoftmaxWithLoss()

    def predict(self, x, train_flg=False):
        for layer in self.layers:
            if isinstance(layer, Dropout):
                x = layer.forward(x, train_flg)
            else:
                x = layer.forward(x)
        return x

    def loss(self, x, t):
        y = self.predict(x, train_flg=True)
        return self.last_layer.forward(y, t)

    def accuracy(self, x, t, batch_size=100):
        if t.ndim != 1 : t = np.argmax(t, axis=1)

        acc = 0.0

        for i in range(int(x.shape[0] / batch_size)):
            tx = x[i*batch_size:(i+1)*batch_size]
            tt = t[i*batch_size:(i+1)*batch_size]
            y = self.predict(tx, train_flg=False)
            y = np.argmax(y, axis=1)
            acc += np.sum(y == tt)

        return acc / x.shape[0]

    def gradient(self, x, t):
        # forward
        self.loss(x, t)

        # backward
        dout = 1
        dout = self.last_layer.backward(dout)

        tmp_layers = self.layers.copy()
        tmp_layers.reverse()
        for layer in tmp_layers:
            dout = layer.backward(dout)

        # 設定
        grads = {}
        for i, layer_idx in enumerate((0, 2, 5, 7, 10, 12, 15, 18)):
            grads['W' + str(i+1)] = self.layers[layer_idx].dW
            grads['b' + str(i+1)] = self.layers[layer_idx].db

        return grads

    def save_params(self, file_name="params.pkl"):
        params = {}
        for key, val in self.params.items():
            params[key] = val
        with open(file_name, 'wb') as f:
            pickle.dump(params, f)

    def load_params(self, file_name="params.pkl"):
        with open(file_name, 'rb') as f:
            params = pickle.load(f)
        for key, val in params.items():
            self.params[key] = val

        for i, layer_idx in enumerate((0, 2, 5, 7, 10, 12, 15, 18)):
            self.layers[layer_idx].W = self.params['W' + str(i+1)]
            self.layers[layer_idx].b = self.params['b' + str(i+1)]
"""  # noqa: E501
ACCURACY_CELL = """
#学習済みデータの精度を算出
import matplotlib.pyplot as plt
from fukami.scratch import load_mnist
from fukami.scratch import Trainer

(x_train, t_train), (x_test, t_test) = load_mnist(flatten=False)

network = DeepConvNet()

network.load_params(file_name="deep_convnet_params.pkl")

network.accuracy(x_test,t_test)
"""
FLOAT16_CELL = """
import numpy as np
import matplotlib.pyplot as plt
from fukami.scratch import DeepConvNet
from fukami.scratch import load_mnist


(x_train, t_train), (x_test, t_test) = load_mnist(flatten=False)

network = DeepConvNet()
network.load_params("deep_convnet_params.pkl")

sampled = 10000 # 高速化のため
x_test = x_test[:sampled]
t_test = t_test[:sampled]

print("caluculate accuracy (float64) ... ")
print(network.accuracy(x_test, t_test))

# float16に型変換
x_test = x_test.astype(np.float16)
for param in network.params.values():
    param[...] = param.astype(np.float16)

print("caluculate accuracy (float16) ... ")
print(network.accuracy(x_test, t_test))
"""


@pytest.fixture
def small_mnist(mnist_folder, monkeypatch, tmp_path):
    """Use the first 300 images of MNIST, in a working directory with ``deep_convnet_params.pkl``."""
    from fukami.data import mnist

    splits = [tuple(array[:300] for array in split) for split in mnist.load_mnist()]
    monkeypatch.setattr(mnist, "load_mnist", lambda: splits)
    monkeypatch.chdir(tmp_path)
    scratch.DeepConvNet().save_params("deep_convnet_params.pkl")


def test_cells_of_the_note_run(small_mnist, capsys):
    cells = {}
    exec(FLOAT16_CELL, cells)
    accuracy, float16_accuracy = (float(line) for line in capsys.readouterr().out.splitlines()[1::2])
    assert cells["x_test"].dtype == np.float16
    assert abs(accuracy - float16_accuracy) <= 0.01
    exec(CLASS_CELL, cells)
    exec(ACCURACY_CELL, cells)
    assert cells["network"].accuracy(cells["x_test"], cells["t_test"]) == accuracy
    assert cells["DeepConvNet"] is not scratch.DeepConvNet


def test_training_of_the_notes_network_equals_ours(small_mnist):
    cells = {}
    exec(CLASS_CELL, cells)
    (x, t), _ = scratch.load_mnist(flatten=False)
    losses = []
    for network in cells["DeepConvNet"](), scratch.DeepConvNet():
        network.load_params("deep_convnet_params.pkl")
        np.random.seed(3)
        trainer = scratch.Trainer(network, x, t, x, t, 1, 50, evaluate_sample_num_per_epoch=50, verbose=False)
        trainer.train()
        losses.append(trainer.train_loss_list)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_load_mnist(small_mnist):
    (x, t), (x_test, t_test) = scratch.load_mnist()
    assert x.shape == (300, 784)
    assert x.dtype == np.float32
    assert x.min() == 0
    assert x.max() == 1
    assert t.shape == (300,)
    assert t[:5].tolist() == [5, 0, 4, 1, 9]
    (raw, one_hot), _ = scratch.load_mnist(normalize=False, flatten=False, one_hot_label=True)
    assert raw.shape == (300, 1, 28, 28)
    assert raw.dtype == np.uint8
    assert raw.flags.writeable
    np.testing.assert_array_equal(x, raw.reshape(300, 784) / np.float32(255))
    np.testing.assert_array_equal(one_hot, np.eye(10)[t])
    assert t_test[:3].tolist() == [7, 2, 1]
    assert len(x_test) == 300
