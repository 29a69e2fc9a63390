"""``benchmarks/own_data.py`` and its plain scripts: splits, beam search, and a smoke run beside a fukami run."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import vgg16

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    """Make the modules of the benchmarks importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_every_fifth_training_image_is_for_validation():
    from common.datasets import split_names

    names = [f"{index:02}" for index in range(100)]
    splits = split_names(names, ["a", "b"])
    assert (len(splits["train"]), len(splits["val"]), splits["test"]) == (80, 20, ["a", "b"])
    assert sorted(splits["train"] + splits["val"]) == names


@pytest.mark.usefixtures("benchmarks")
def test_a_wide_beam_finds_the_likeliest_caption():
    from fukami.captioning.tokenizer import BEGIN, END
    from peers.caption import Decoder

    torch.manual_seed(0)
    decoder = Decoder(8, 0.0, 6).eval()  # three words beside the special tokens
    for parameter in decoder.lstm.parameters():
        torch.nn.init.normal_(parameter, std=2.0)  # so that the scores depend on all previous words
    torch.nn.init.normal_(decoder.scores.weight, std=2.0)
    features, scores = 5 * torch.randn(50, 512), {}
    with torch.inference_mode():
        captions = decoder.generate(features, beam_size=300, max_tokens=4)
        for length in range(5):
            for words in itertools.product((3, 4, 5), repeat=length):
                tokens = torch.tensor([BEGIN, *words, *[END] * (length < 4)]).expand(50, -1)
                log_probs = decoder(features, tokens[:, :-1]).log_softmax(2)
                scores[words] = log_probs.gather(2, tokens[:, 1:, None]).sum((1, 2))
    best = [list(scores)[index] for index in torch.stack(list(scores.values())).argmax(0)]
    assert [tuple(word for word in caption if word not in (BEGIN, END)) for caption in captions] == best
    assert len(set(best)) > 3


@pytest.mark.slow
def test_classification_script_trains_with_the_settings_of_a_run(tmp_path):
    generator = np.random.default_rng(0)
    for split, label, index in itertools.product(("train", "val", "test"), ("dark", "light"), range(4)):
        pixels = generator.integers(0, 128, (32, 32, 3)) + 127 * (label == "light")
        folder = tmp_path / "data" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    weights = {f"features.{name}": value for name, value in vgg16(weights=None).features.state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FUKAMI_RESULTS": str(tmp_path / "results.csv")}
    command = [sys.executable, "-m", "fukami", "train", "vgg16", "--data", str(tmp_path / "data"), "--size", "32",
               "--init", str(tmp_path / "weights.safetensors"), "--epochs", "1", "--head-epochs", "1", "--hidden", "8",
               "--batch-size", "4", "--out", str(tmp_path / "run")]  # fmt: skip
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    script = [sys.executable, "-m", "peers.classify", str(tmp_path / "data"), str(tmp_path / "run")]
    process = subprocess.run(script, env=environment, cwd=ROOT / "benchmarks", capture_output=True, text=True,
                             check=True, timeout=300)  # fmt: skip
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["count"] == 8
    assert 0 <= result["accuracy"] <= 1
    assert process.stderr.count("epoch 1/1") == 2  # the head, then all layers
