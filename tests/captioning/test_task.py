"""Tests of captioning: metrics compared with coco-caption, the network and decoding by hand, dataset formats."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from fukami import Error, UsageError, models, train
from fukami.captioning import beam_search, tokenizer
from fukami.captioning import data as captioning_data
from fukami.captioning import metrics as captioning_metrics
from fukami.captioning.loader import pad_sequences
from fukami.captioning.show_and_tell import ShowAndTell
from fukami.captioning.task import CaptioningTask, DecodingConfig
from fukami.data import scenes
from fukami.data.sources import identify_source
from fukami.engine import async_checkpoint
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.image import draw as image_draw
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

FIXTURE = Path(__file__).parents[1] / "fixtures" / "captions.json"
CAPTIONS = {
    "a.png": ("A red square, on gray.", "Something red!"),
    "b.png": ("A green square on gray", "Something green"),
    "c.png": ("A blue square on gray", "something Blue"),
}


@pytest.fixture
def folder(tmp_path):
    """Thirty images of three colors, in Flickr8k's format."""
    root = tmp_path / "squares"
    (root / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(30):
        pixels = np.full((40, 48, 3), 120, np.uint8)
        pixels[8:32, 8:32, number % 3] = 255 - number
        name = f"{number:02}.png"
        Image.fromarray(pixels).save(root / "Images" / name)
        lines += [f"{name},{caption}" for caption in CAPTIONS[f"{'abc'[number % 3]}.png"]]
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    return root


def build_recipe(folder, **fields):
    """Build a small recipe."""
    small = {
        "data": str(folder),
        "encoder": "resnet20",
        "size": 32,
        "hidden": 32,
        "batch_size": 16,
        "min_word_count": 1,
    }
    return ShowAndTell(
        **{**small, "dropout": 0.0, "augment": (), "beam_size": 3, "epochs": 4, "eval_every": 2, **fields}
    )


# metrics


def test_metrics_equal_coco_captions():
    """Forty random captions, evaluated by coco-caption's code (fixtures/make_captions.py)."""
    expected = json.loads(FIXTURE.read_text())
    captions = [texts[0].split() for texts in expected["found"].values()]
    references = [[text.split() for text in texts] for texts in expected["references"].values()]
    metrics = captioning_metrics.evaluate_captions(captions, references, {"a dog"})
    assert [metrics[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx(expected["bleu"], rel=1e-12)
    assert metrics["rouge_l"] == pytest.approx(expected["rouge_l"], rel=1e-12)
    assert metrics["cider"] == pytest.approx(expected["cider"], rel=1e-12)
    rouge_l = [captioning_metrics.compute_rouge_l(*pair) for pair in zip(captions, references, strict=True)]
    assert rouge_l == pytest.approx(expected["rouge_l_each"], rel=1e-12)
    assert captioning_metrics.compute_cider(captions, references) == pytest.approx(expected["cider_each"], rel=1e-12)
    assert metrics["count"] == 40


def test_repeated_and_copied_captions_are_counted():
    captions = [["a", "dog"], ["a", "dog"], ["a", "cat"], ["two", "cats"]]
    references = [[["a", "dog"]], [["a", "cat"], ["a", "dog"]], [["the", "cat"]], [["cats"]]]
    metrics = captioning_metrics.evaluate_captions(captions, references, {"a dog", "a bird"})
    assert (metrics["exact_fraction"], metrics["distinct_fraction"], metrics["copied_fraction"]) == (0.5, 0.75, 0.5)
    assert "copied_fraction" not in captioning_metrics.evaluate_captions(captions, references, set())


def test_images_of_16_bits_are_drawn(folder, tmp_path):
    """One makes all images of the split float32."""
    pixels = (np.arange(40 * 48).reshape(40, 48) * 30).astype(np.uint16)
    Image.fromarray(pixels).save(folder / "Images" / "29.png")
    recipe = build_recipe(folder)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    assert data.val.images.dtype == torch.float32
    assert [title for title, _ in task.plot_evaluation(data.val)]


# tokenizer


def test_sentences_are_tokenized():
    assert tokenizer.tokenize("A dog's tri-colored coat, isn't it?", "words") == [
        "a",
        "dog's",
        "tri-colored",
        "coat",
        "isn't",
        "it",
    ]
    assert tokenizer.tokenize("Ｔｗｏ ＤＯＧＳ — running...", "words") == ["two", "dogs", "running"]
    assert tokenizer.tokenize("हिन्दी में, एक कुत्ता।", "words") == ["हिन्दी", "में", "एक", "कुत्ता"]
    assert tokenizer.tokenize("cafe\u0301s ☺️ ok", "words") == ["cafés", "ok"]
    assert tokenizer.tokenize("Ein großer Hund läuft über die Straße.", "words")[:3] == ["ein", "großer", "hund"]


def test_japanese_tokenizers():
    sentence = "赤い服を着た女の子が階段を登っています。"
    assert tokenizer.tokenize(sentence, "characters")[:4] == ["赤", "い", "服", "を"]
    assert tokenizer.detokenize(tokenizer.tokenize("犬がAIを見る", "characters"), "characters") == "犬がaiを見る"
    with pytest.raises(Error, match=r"no spaces between the words.*--tokenizer japanese"):
        tokenizer.tokenize(sentence, "words")
    pytest.importorskip("janome", reason="needs the extra japanese")
    words = tokenizer.tokenize(sentence, "japanese")
    assert words[:4] == ["赤い", "服", "を", "着"]
    assert tokenizer.detokenize(words, "japanese") == sentence.rstrip("。")


def test_vocabulary_contains_frequent_words():
    labels = tokenizer.build_vocabulary([["a", "dog"], ["a", "cat"], ["the", "dog"], ["a"]], 2)
    assert labels == ("<end>", "<begin>", "<unknown>", "a", "dog")
    indices = {label: index for index, label in enumerate(labels)}
    assert tokenizer.encode_tokens(["a", "cat"], indices) == [1, 3, 2, 0]
    with pytest.raises(Error, match="no word occurs 9 times"):
        tokenizer.build_vocabulary([["a"]], 9)


def test_pad_sequences():
    assert pad_sequences([[1, 5, 0], [1, 5, 6, 7, 0]], 4).tolist() == [[1, 5, 0, -1], [1, 5, 6, 0]]


# the network


def test_number_of_parameters():
    """GoogLeNet without its heads, a fully connected layer, batch normalization, 8,791 word embeddings, an LSTM, and a
    bias for each word."""
    with torch.device("meta"):
        network = models.show_and_tell()
    lstm = 4 * 512 * (512 + 512 + 2)
    assert (
        sum(p.numel() for p in network.parameters())
        == 6_624_904 - 1025 * 1000 + 1024 * 512 + 2 * 512 + 8791 * 513 + lstm
    )


@pytest.mark.parametrize(
    ("encoder", "options", "features"),
    [
        ("resnet18", (), 512),
        ("vgg11", (), 512),
        ("vgg11", ("batch_norm=true",), 512),
        ("googlenet", ("kernel_size=5",), 1024),
        ("deep-convnet", ("batch_norm=true", "hidden=30"), 30),
        ("binary-deep-convnet", (), 128),
    ],
)
def test_any_classifier_can_be_the_encoder(encoder, options, features):
    torch.manual_seed(0)
    recipe = ShowAndTell(encoder=encoder, encoder_options=options, size=64, hidden=16)
    network = recipe.build_task((*tokenizer.SPECIAL_TOKENS, *"abcdefgh")).model
    has_batch_norm = any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.encoder.modules())
    assert has_batch_norm == (encoder not in ("vgg11", "deep-convnet") or "batch_norm=true" in options)
    images = torch.rand(2, 3, 64, 64)
    assert network.encode_images(images).shape == (2, features)
    scores = network(images, torch.tensor([[1, 4, 5], [1, 6, 0]]))
    assert scores.shape == (2, 3, 11)
    scores.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_an_encoder_has_no_auxiliary_classifiers():
    recipe = ShowAndTell(encoder="googlenet", encoder_options=("aux_loss=true",))
    with pytest.raises(UsageError, match="an encoder has no auxiliary classifiers"):
        recipe.build_task((*tokenizer.SPECIAL_TOKENS, "a"))


def test_activation_checkpointing_leaves_steps_unchanged(folder):
    """Fewer activations are stored, and the gradients are bit-identical."""
    states = []
    for checkpointing in (False, True):
        recipe = build_recipe(folder, activation_checkpointing=checkpointing)
        data = recipe.load_data()
        torch.manual_seed(1)
        task = recipe.build_task(data.labels)
        task.setup(Runtime.start("cpu", "float32"))
        task.prepare_training()
        saved = []
        task.schedule(0.5)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x.numel()) or x, lambda x: x):
            task.step(next(iter(task.iterate_batches(data.train))))
        states.append((task.model.state_dict(), sum(saved)))
    (expected_state, num_saved), (state, num_saved_checkpointed) = states
    assert num_saved_checkpointed < 0.7 * num_saved
    assert all(torch.equal(value, state[key]) for key, value in expected_state.items())
    with pytest.raises(UsageError, match="which --init freezes"):
        build_recipe(folder, activation_checkpointing=True, init="imagenet")
    stages = build_recipe(folder, activation_checkpointing=True, init="imagenet", finetune_epochs=1).stages(folder)
    assert not stages["frozen"].activation_checkpointing


def test_decoding_steps_equal_the_forward_pass():
    """The scores of single steps are those of the forward pass, and of equations 10 to 12 by hand."""
    torch.manual_seed(0)
    network = models.show_and_tell(models.resnet20(1), 9, hidden=8, dropout=0.5).eval()
    features, tokens = torch.randn(2, 64), torch.tensor([[1, 4, 5], [1, 8, 3]])
    expected = network(features, tokens).log_softmax(2)
    state = network.init_state(features)
    for position in range(3):
        state, scores = network.step(state, tokens[:, position])
        torch.testing.assert_close(scores, expected[:, position])
    lstm = network.lstm
    h = c = torch.zeros(2, 8)
    for x in (network.image(features), *network.words(tokens).unbind(1)):
        i, f, g, o = (x @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    by_hand = (h @ network.words.weight.T + network.bias).log_softmax(1)
    torch.testing.assert_close(scores, by_hand)


def test_loss_is_the_mean_over_tokens(folder):
    """The loss is the mean negative log-likelihood of all tokens (Vinyals et al. 2015, equation 13)."""
    recipe = build_recipe(folder)
    torch.manual_seed(0)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    images, tokens = next(iter(data.train))
    task.model.eval()
    loss, _ = task.compute_loss((images, tokens))
    total = count = 0
    for image, row in zip(images, tokens.tolist(), strict=True):
        sentence = [word for word in row if word >= 0]
        scores = task.model(task.normalize_images(image[None]), torch.tensor([sentence[:-1]]))
        total += F.cross_entropy(scores[0], torch.tensor(sentence[1:]), reduction="sum").item()
        count += len(sentence) - 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_a_batch_without_tokens_has_no_loss(folder):
    """Such as a part of a batch whose images cannot be read."""
    recipe = build_recipe(folder)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    images, tokens = next(iter(data.train))
    loss, metrics = task.compute_loss((images, torch.full_like(tokens, -1)))
    assert loss.item() == metrics["token_accuracy"].item() == 0


# decoding


def build_language(vocabulary_size, seed=0):
    """Return the decoder step and the initial state of a language whose next word depends on the previous two."""
    torch.manual_seed(seed)
    scores = (2 * torch.randn(2, vocabulary_size, vocabulary_size, vocabulary_size)).log_softmax(3)

    def step(state, last):
        image, previous = state
        return (image, last), scores[image, previous, last]

    return step, (torch.arange(2), torch.zeros(2, dtype=torch.long))


def iterate_sentences(vocabulary_size, max_tokens):
    """Yield all sentences, including the end token of shorter ones."""
    inner = [token for token in range(vocabulary_size) if token != 0]
    for count in range(max_tokens):
        yield from ((*sentence, 0) for sentence in itertools.product(inner, repeat=count))
    yield from itertools.product(inner, repeat=max_tokens)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beam_search_equals_exhaustive_search(length_penalty):
    """The language has 4 tokens and sentences of up to 4 tokens; two images are searched at once."""
    vocabulary_size, max_tokens = 4, 4
    step, state = build_language(vocabulary_size)
    sequences, log_probs, lengths = beam_search.search(
        step, state, beam_size=4**4, max_tokens=max_tokens, begin=1, end=0
    )
    # the first step fills no more beams than there are tokens
    for image in range(2):
        sentence_scores = {}
        for sentence in iterate_sentences(vocabulary_size, max_tokens):
            image_state, score, last = (torch.tensor([image]), torch.zeros(1, dtype=torch.long)), 0.0, 1
            for word in sentence:
                image_state, scores = step(image_state, torch.tensor([last]))
                score, last = score + scores[0, word].item(), word
            sentence_scores[sentence] = score / len(sentence) ** length_penalty
        ranked = (log_probs[image] / lengths[image].float() ** length_penalty).argsort(descending=True)
        best = sequences[image, ranked[0]].tolist()
        best = tuple(best[: best.index(0) + 1] if 0 in best else best)
        assert best == max(sentence_scores, key=sentence_scores.get)


def test_beam_size_of_one_is_greedy():
    step, state = build_language(6)
    sequences, log_probs, lengths = beam_search.search(step, state, beam_size=1, max_tokens=5, begin=1, end=0)
    for image in range(2):
        image_state, last, score, sentence = (torch.tensor([image]), torch.zeros(1, dtype=torch.long)), 1, 0.0, []
        while len(sentence) < 5 and (not sentence or sentence[-1]):
            image_state, scores = step(image_state, torch.tensor([last]))
            last = int(scores[0].argmax())
            score += scores[0, last].item()
            sentence.append(last)
        assert sequences[image, 0].tolist()[: len(sentence)] == sentence
        assert log_probs[image, 0].item() == pytest.approx(score, rel=1e-5)
        assert lengths[image, 0] == len(sentence)


def test_wider_beams_find_no_worse_sentences():
    step, state = build_language(7, seed=3)
    best = [
        beam_search.search(step, state, beam_size=beam_size, max_tokens=6, begin=1, end=0)[1][:, 0]
        for beam_size in (1, 3, 7)
    ]
    assert (best[1] >= best[0] - 1e-6).all()
    assert (best[2] >= best[1] - 1e-6).all()


def test_samples_follow_the_probabilities():
    """Frequencies of one-word sentences match the probabilities; a low temperature yields the most likely word."""
    step, state = build_language(5)
    options = {"max_tokens": 1, "begin": 1, "end": 0}
    generator = torch.Generator().manual_seed(0)
    sequences, log_probs, _ = beam_search.sample(
        step, state, num_samples=4000, temperature=1.0, generator=generator, **options
    )
    _, scores = step(state, torch.ones(2, dtype=torch.long))
    for image in range(2):
        fractions = sequences[image, :, 0].bincount(minlength=5) / 4000
        torch.testing.assert_close(fractions, scores[image].exp(), rtol=0, atol=0.03)
        assert log_probs[image].tolist() == sorted(log_probs[image].tolist(), reverse=True)
        torch.testing.assert_close(log_probs[image], scores[image][sequences[image, :, 0]])
    cool, log_probs, _ = beam_search.sample(
        step, state, num_samples=4000, temperature=0.5, generator=generator, **options
    )
    for image in range(2):
        fractions = cool[image, :, 0].bincount(minlength=5) / 4000
        torch.testing.assert_close(fractions, (scores[image] / 0.5).softmax(0), rtol=0, atol=0.03)
        torch.testing.assert_close(log_probs[image], scores[image][cool[image, :, 0]])  # without the temperature
    cold, _, _ = beam_search.sample(step, state, num_samples=50, temperature=0.01, generator=generator, **options)
    assert (cold[:, :, 0] == scores.argmax(1, keepdim=True)).all()


# datasets


def test_flickr8k(folder):
    train, val, test = captioning_data.load_dataset(str(folder), 0.1)
    assert [len(split) for split in (train, val, test)] == [27, 3, 0]
    assert [path.name for path in val.items] == ["27.png", "28.png", "29.png"]
    assert val.captions[0] == ("A red square, on gray.", "Something red!")  # an unquoted comma


def build_formats(folder):
    """Return the files of the same images and captions in every format, with splits if the format has them."""
    names = sorted(path.name for path in (folder / "Images").iterdir())
    captions = {name: CAPTIONS[f"{'abc'[int(name[:2]) % 3]}.png"] for name in names}
    splits = {name: "train" if int(name[:2]) < 20 else "val" if int(name[:2]) < 25 else "test" for name in names}
    rows = [(name, number, caption) for name in names for number, caption in enumerate(captions[name])]
    tokens = "".join(f"{name}#{number}\t{caption}\n" for name, number, caption in rows)
    lists = {
        f"Flickr_8k.{word}Images.txt": "".join(f"{name}\n" for name in names if splits[name] == split)
        for word, split in (("train", "train"), ("dev", "val"), ("test", "test"))
    }
    karpathy = [
        {"filename": name, "split": "restval" if splits[name] == "train" and int(name[:2]) > 9 else splits[name],
         "sentences": [{"raw": caption} for caption in captions[name]]}
        for name in names
    ]  # fmt: skip
    coco = {
        f"annotations/captions_{word}2017.json": json.dumps({
            "images": [{"id": 5 + int(name[:2]), "file_name": name} for name in names if splits[name] in file_splits],
            "annotations": [{"image_id": 5 + int(name[:2]), "caption": caption}
                            for name, _, caption in rows if splits[name] in file_splits],
        })
        for word, file_splits in (("train", ("train",)), ("val", ("val", "test")))
    }  # fmt: skip
    table = "".join(f'{name},"{caption}",{splits[name]}\n' for name, _, caption in rows)
    return {
        "flickr8k tokens": {"Flickr8k.token.txt": tokens, **lists},
        "flickr30k": {"results.csv": "image_name| comment_number| comment\n"
                      + "".join(f"{name}| {number}| {caption}\n" for name, number, caption in rows)},
        "karpathy": {"dataset.json": json.dumps({"images": karpathy})},
        "coco": coco,
        "table": {"table.csv": "image,sentence,split\n" + table},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["flickr8k tokens", "flickr30k", "karpathy", "coco", "table"])
def test_every_format(name, folder):
    files = build_formats(folder)[name]
    (folder / "captions.txt").unlink()
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content)
    sizes = {"flickr30k": [27, 3, 0], "coco": [20, 10, 0]}.get(name, [20, 5, 5])
    splits = captioning_data.load_dataset(str(folder), 0.1)
    assert [len(split) for split in splits] == sizes
    for split in splits:
        for path, captions in zip(split.items, split.captions, strict=True):
            assert captions == CAPTIONS[f"{'abc'[int(path.name[:2]) % 3]}.png"]
            assert path.exists()
    assert identify_source(str(folder)).has("captions")


def test_captions_of_lemmas_are_not_used(folder):
    """Flickr8k has a file of captions with each word in its base form beside the captions."""
    (folder / "captions.txt").unlink()
    files = build_formats(folder)["flickr8k tokens"]
    files["Flickr8k.lemma.token.txt"] = files["Flickr8k.token.txt"].replace("blue", "lemma")
    for file, content in files.items():
        (folder / file).write_text(content)
    train, _, _ = captioning_data.load_dataset(str(folder), 0.1)
    assert not any("lemma" in caption for captions in train.captions for caption in captions)


def test_caption_files_of_any_name_are_read_for_each_split(folder):
    coco = build_formats(folder)["coco"]
    (folder / "captions.txt").unlink()
    for word in ("train", "val"):
        (folder / f"{word}.json").write_text(coco[f"annotations/captions_{word}2017.json"])
    assert [len(split) for split in captioning_data.load_dataset(str(folder), 0.1)] == [20, 10, 0]


def test_one_caption_file_of_any_name_is_read_for_each_split(folder, caplog):
    """Such as the same captions as tokens."""
    coco = build_formats(folder)["coco"]
    (folder / "captions.txt").unlink()
    for word in ("train", "val"):
        for name in (f"stair_{word}.json", f"stair_{word}_tokenized.json"):
            (folder / name).write_text(coco[f"annotations/captions_{word}2017.json"])
    train, val, _ = captioning_data.load_dataset(str(folder), 0.1)
    assert [len(captions) for split in (train, val) for captions in split.captions] == [2] * 30
    assert "not those in stair_train_tokenized.json, stair_val_tokenized.json" in caplog.text


def test_parts_of_a_split_are_read(folder):
    (folder / "captions.txt").unlink()
    for name, numbers in (("train_1", range(10)), ("train_2", range(10, 20)), ("val", range(20, 25))):
        images = [{"id": number, "file_name": f"{number:02}.png"} for number in numbers]
        annotations = [{"image_id": number, "caption": "a square"} for number in numbers]
        (folder / f"{name}.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    assert [len(split) for split in captioning_data.load_dataset(str(folder), 0.1)] == [20, 5, 0]


def test_a_caption_file_without_a_split_beside_those_of_splits_is_not_read(folder, caplog):
    (folder / "captions.txt").unlink()
    for name, numbers in (("train", range(20)), ("val", range(20, 25)), ("extra", range(25, 30))):
        rows = "".join(f"{number:02}.png,A square\n" for number in numbers)
        (folder / f"{name}.csv").write_text(f"image,caption\n{rows}")
    assert [len(split) for split in captioning_data.load_dataset(str(folder), 0.1)] == [20, 5, 0]
    assert "only the captions in train.csv, val.csv are read, not those in extra.csv" in caplog.text


def test_load_a_csv_and_an_archive(folder, tmp_path):
    import shutil

    (folder / "captions.txt").rename(folder / "table.csv")
    assert len(captioning_data.load_dataset(str(folder / "table.csv"), 0.0)[0]) == 30
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    assert len(captioning_data.load_dataset(archive, 0.0)[0]) == 30


def test_problems_are_reported(folder, doctor, caplog):
    with (folder / "captions.txt").open("a") as file:
        file.write("nowhere.png,A dog\n29.png,\n")
    assert len(captioning_data.load_dataset(str(folder), 0.1)[0]) == 27
    assert "2 images or captions are skipped" in caplog.text
    (folder / "Images" / "03.png").write_bytes(b"broken")
    (folder / "Images" / "more.png").write_bytes((folder / "Images" / "04.png").read_bytes())
    result = doctor(folder)
    assert result.status == 1
    problems = {(line["problem"], Path(line["file"]).name) for line in result.json}
    assert {("missing", "captions.txt"), ("no caption", "captions.txt"), ("unreadable", "03.png")} <= problems
    assert ("no caption", "more.png") in problems
    lines = {line["problem"]: line["line"] for line in result.json if Path(line["file"]).name == "captions.txt"}
    assert lines == {"missing": 62, "no caption": 63}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", "{", "is invalid"),
        ("dataset.json", '{"images": [{"split": "train"}]}', "KeyError"),
        ("table.csv", "image,caption\nx.png,Ü".encode("utf-16"), "UTF-8|no captions"),
        ("notes.txt", "hello", "contains no captions"),
    ],
)
def test_invalid_files_are_rejected(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(Error, match=message):
        captioning_data.load_dataset(str(tmp_path), 0.1)


def test_captions_of_scenes_name_the_objects():
    """Captions name one or two objects with their textures, from left to right, and are reproducible."""
    images, captions = scenes.generate_captioned_images(0, 40)
    counts = {caption.count(" and ") for (caption,) in captions}
    assert counts == {0, 1}
    for number, ((caption,), image) in enumerate(zip(captions, images, strict=True)):
        scene = scenes.generate_scene(0, number, scenes.SPARSE)
        assert np.array_equal(image, scene.image)
        centers = (scene.boxes[:, 0] + scene.boxes[:, 2]).tolist()
        order = sorted(range(len(centers)), key=centers.__getitem__)
        labels = [scenes.LABELS[scene.classes[index]] for index in order]
        objects = [phrase.split()[-1] for phrase in caption.split(" and ")]
        assert sorted(objects) == sorted(labels)
        if len(centers) == 2 and abs(centers[0] - centers[1]) > 8:  # occlusion moves a center slightly
            assert objects == labels
    with pytest.raises(UsageError, match="no built-in dataset of that name"):
        captioning_data.load_dataset("scenez", 0.1)


# training


@pytest.mark.slow
def test_training_learns_the_colors(folder, tmp_path):
    """The captions of held-out images name the right colors."""
    metrics = train(
        build_recipe(folder, epochs=40, lr=5e-3), tmp_path / "run", device="cpu", precision="float32"
    ).metrics
    assert metrics["count"] == 3
    assert metrics["exact_fraction"] == 1.0
    task = load_task(tmp_path / "run", device="cpu")
    (prediction,) = task.predict([folder / "Images" / "28.png"])
    assert "green" in prediction["caption"]
    assert prediction["captions"][0]["caption"] == prediction["caption"]
    assert 0 < prediction["probability"] <= 1
    assert len({caption["caption"] for caption in prediction["captions"]}) == len(prediction["captions"])
    drawn = task.draw(image_io.read_image(folder / "Images" / "28.png"), prediction)
    assert drawn.height > drawn.width * 40 / 48


def test_features_of_a_frozen_encoder_are_computed_once(folder, tmp_path, monkeypatch):
    """A second run reads the features from the cache and gets the same metrics; the encoder's weights are unchanged."""
    torch.manual_seed(0)
    encoder = models.resnet20(10)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    recipe = build_recipe(folder, init=str(tmp_path / "encoder.safetensors"))
    batch_sizes = []
    encode_images = models.show_and_tell.__globals__["ShowAndTell"].encode_images

    def count_images(self, images):
        batch_sizes.append(len(images))
        return encode_images(self, images)

    monkeypatch.setattr(models.show_and_tell.__globals__["ShowAndTell"], "encode_images", count_images)
    results = [train(recipe, tmp_path / name, device="cpu", precision="float32").metrics for name in ("one", "two")]
    assert sum(batch_sizes) == 27 + 27 + 3  # training images, their mirror images, and validation images
    assert results[0] == results[1]
    weights = load_task(tmp_path / "one", device="cpu").model.encoder.state_dict()
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in weights.items())


def test_features_of_a_frozen_encoder_are_those_of_the_image_or_its_mirror_image(folder):
    recipe = build_recipe(folder, cache_limit=0.0)
    data = recipe.load_data()
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    loader = data.train
    loader.setup(task.runtime)
    with torch.no_grad(), task.evaluation_mode():
        plain, mirrored = task.extract_features(loader), task.extract_features(loader, flip=True)
        images = torch.cat(list(loader.iterate_images()))
        torch.testing.assert_close(plain, task.model.encode_images(task.normalize_images(images)))
        torch.testing.assert_close(mirrored, task.model.encode_images(task.normalize_images(images.flip(3))))
    assert (plain - mirrored).abs().amax(1).min() > 1e-4
    loader.set_features(torch.stack([plain, mirrored], 1))
    found = torch.cat([features for features, _ in loader])
    kinds = [(found[:, None] - views).abs().amax(2).min(1).values < 1e-6 for views in (plain, mirrored)]
    assert (kinds[0] ^ kinds[1]).all()
    assert 0 < kinds[1].sum() < len(found)


def test_fine_tuning_changes_the_encoder_after_the_frozen_stage(folder, tmp_path):
    torch.manual_seed(0)
    encoder = models.resnet20(10)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    recipe = build_recipe(folder, init=str(tmp_path / "encoder.safetensors"), finetune_epochs=1, epochs=2)
    train(recipe, tmp_path / "run", device="cpu", precision="float32")
    frozen, finetuned = (load_task(tmp_path / "run" / stage, device="cpu").model for stage in ("frozen", ""))
    key = "conv1.weight"
    assert torch.equal(frozen.encoder.state_dict()[key], encoder.state_dict()[key])
    assert not torch.equal(finetuned.encoder.state_dict()[key], encoder.state_dict()[key])


def test_streamed_training_equals_training_from_memory(folder, tmp_path):
    """Images are streamed from files, with a trained and with a frozen encoder."""
    trained = [
        train(
            build_recipe(folder, memory_limit=limit, epochs=2), tmp_path / f"trained-{limit}", device="cpu",
            precision="float32",
        ).metrics
        for limit in (0.0, 4.0)
    ]  # fmt: skip
    assert trained[0] == trained[1]
    torch.manual_seed(0)
    save_file(models.resnet20(10).state_dict(), tmp_path / "encoder.safetensors")
    fields = {"init": str(tmp_path / "encoder.safetensors"), "cache_limit": 0.0}
    results = [
        train(
            build_recipe(folder, memory_limit=limit, **fields), tmp_path / str(limit), device="cpu", precision="float32"
        ).metrics
        for limit in (0.0, 4.0)
    ]
    assert results[0] == results[1]


def test_checkpoints_do_not_open_the_images_of_the_dataset(folder, tmp_path, monkeypatch):
    """A read-only dataset cannot be opened for writing, so a checkpoint may only sync its own files."""
    synced = []
    monkeypatch.setattr(async_checkpoint, "sync_file", synced.append)
    train(build_recipe(folder, memory_limit=0.0, epochs=1), tmp_path / "run", device="cpu", precision="float32")
    assert {path.name for path in synced} == {"metrics.jsonl"}


def test_predict_with_each_decoding(folder, tmp_path, fukami):
    train(build_recipe(folder, epochs=8), tmp_path / "run", device="cpu", precision="float32")
    image = folder / "Images" / "28.png"
    predictions = {}
    for decoding, options in {
        "beam": ["--set", "beam_size=20", "num_captions=9"],
        "greedy": ["--set", "decoding=greedy"],
        "sample": ["--set", "decoding=sample", "temperature=2.0", "num_captions=4"],
    }.items():
        result = fukami("predict", tmp_path / "run", image, "--device", "cpu", *options)
        assert result.status == 0, result.err
        (predictions[decoding],) = result.json
    assert len(predictions["beam"]["captions"]) == 9
    assert len(predictions["greedy"]["captions"]) == 1
    assert 1 <= len(predictions["sample"]["captions"]) <= 4
    scores = [caption["score"] for caption in predictions["beam"]["captions"]]
    assert scores == sorted(scores, reverse=True)
    assert math.log(predictions["beam"]["probability"]) >= math.log(predictions["greedy"]["probability"]) - 1e-6
    result = fukami("predict", tmp_path / "run", image, "--set", "beam=3")
    assert result.status in (1, 2)
    assert "did you mean 'beam_size'" in result.err
    result = fukami("predict", tmp_path / "run", image, "--set", "beam_size=many")
    assert result.status == 2
    assert "beam_size" in result.err


def test_default_decoding_is_the_papers():
    """Beam search with beam size 20 and no length penalty (Vinyals et al. 2015, section 3.1)."""
    recipe = ShowAndTell(encoder="resnet20", size=32)
    config = recipe.build_task((*tokenizer.SPECIAL_TOKENS, "a")).decoding_config
    assert (config.strategy, config.beam_size, config.length_penalty) == ("beam", 20, 0)


def build_caption_task(config):
    """Build the task of an untrained network with the words a to e."""
    torch.manual_seed(0)
    network = models.show_and_tell(models.resnet20(1), 8, hidden=8, dropout=0.0)
    labels = (*tokenizer.SPECIAL_TOKENS, *"abcde")
    task = CaptioningTask(network, labels, SquareTransform(channels=3, size=32), config)
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    network.eval()
    return task


def test_length_penalty_divides_the_log_probabilities(monkeypatch):
    """The second caption is less probable, but more probable per token: -1.2 / 3 is more than -1 / 2."""
    found = torch.tensor([[[3, 0, 0], [4, 5, 0]]]), torch.tensor([[-1.0, -1.2]]), torch.tensor([[2, 3]])
    monkeypatch.setattr(beam_search, "search", lambda *arguments, **options: found)
    for penalty, expected in ((0.0, ["a", "b c"]), (1.0, ["b c", "a"])):
        task = build_caption_task(DecodingConfig("beam", length_penalty=penalty))
        (captions,) = task.generate_captions(torch.randn(1, 64))
        assert [caption["caption"] for caption in captions] == expected


def test_samples_have_the_temperature_and_no_duplicates(monkeypatch):
    options = []
    sampled = torch.tensor([[[3, 0], [3, 0], [4, 0]]]), torch.tensor([[-1.0, -1.0, -2.0]]), torch.tensor([[2, 2, 2]])
    monkeypatch.setattr(beam_search, "sample", lambda *_, **given: options.append(given) or sampled)
    task = build_caption_task(DecodingConfig("sample", temperature=0.3))
    (captions,) = task.generate_captions(torch.randn(1, 64))
    assert [caption["caption"] for caption in captions] == ["a", "b"]
    assert options[0]["temperature"] == 0.3


def test_a_vocabulary_without_special_tokens_is_rejected():
    with pytest.raises(ValueError, match="does not begin with <end>, <begin>, <unknown>"):
        ShowAndTell(encoder="resnet20").build_task(("a",))


@pytest.mark.parametrize("decoding", ["beam", "greedy", "sample"])
def test_begin_and_unknown_tokens_are_never_generated(decoding):
    """They are excluded even when they have the highest scores."""
    torch.manual_seed(0)
    network = models.show_and_tell(models.resnet20(1), 8, hidden=8, dropout=0.0)
    with torch.no_grad():
        network.bias[[tokenizer.BEGIN, tokenizer.UNKNOWN]] = 20.0
    labels = ("<end>", "<begin>", "<unknown>", *"abcde")
    task = CaptioningTask(
        network, labels, SquareTransform(channels=3, size=32), DecodingConfig(decoding, beam_size=4, max_tokens=6)
    )
    task.setup(Runtime.start("cpu", "float32"))
    task.prepare_training()
    network.eval()
    with torch.inference_mode():
        generated = task.generate_captions(torch.randn(3, 64))
    words = {word for captions in generated for caption in captions for word in caption["caption"].split()}
    assert words
    assert words <= set("abcde")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"finetune_epochs": 2}, "specify them with --init"),
        ({"encoder": "rcnn"}, "should be a classifier"),
        ({"encoder": "resnet19"}, "did you mean 'resnet18'"),
        ({"encoder": "vgg11", "encoder_options": ("batch_norms=true",)}, "did you mean 'batch_norm'"),
        ({"encoder": "vgg11", "encoder_options": ("batch_norm=1",)}, "batch_norm=1: expected batch_norm=VALUE"),
        (
            {"encoder": "vgg11", "encoder_options": ("size=32",)},
            "network of vgg11, which are .*batch_norm.*; size is not one of them",
        ),
        ({"encoder": "resnet18", "encoder_options": ("lr=0.1",)}, "lr is not one of them"),
        ({"augment": ("mixup",)}, "a caption for a mixture"),
        ({"min_word_count": 0}, "min-word-count should be at least 1"),
    ],
)
def test_invalid_fields_are_rejected(fields, message):
    with pytest.raises(UsageError, match=message):
        ShowAndTell(**fields).build_transform()


def test_weights_of_another_classifier_are_rejected(folder, tmp_path):
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "other.safetensors")
    recipe = build_recipe(folder, init=str(tmp_path / "other.safetensors"))
    task = recipe.build_task(("<end>", "<begin>", "<unknown>", "a"))
    with pytest.raises(Error, match="these are ResNet-18 weights; resnet20 needs its own"):
        recipe.initialize_task(task)


def test_caption_is_drawn_below_its_image():
    image = Image.new("RGB", (300, 200), "blue")
    short, long = (image_draw.draw_caption(image, caption) for caption in ("a dog", "a dog and " * 20))
    assert short.width == long.width >= 300
    assert long.height > short.height > 2 * 200
    assert image_draw.draw_caption(image, "犬が走る").height >= short.height
