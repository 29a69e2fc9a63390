"""Show and Tell: its network and its search by hand, its metrics against coco-caption's, every form of sentences."""

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
from torch import nn
from torch.nn import functional as F

from fukami import Error, UsageError, load, models, train
from fukami.captioning import beam_search, tokenizer
from fukami.captioning import data as captioning_data
from fukami.captioning import metrics as captioning_metrics
from fukami.captioning.loader import pad_sequences
from fukami.captioning.show_and_tell import ShowAndTell
from fukami.captioning.task import CaptioningTask, DecodingConfig
from fukami.data import scenes
from fukami.engine import async_checkpoint
from fukami.engine.runtime import Runtime
from fukami.image import io as image_io
from fukami.image.transform import SquareTransform

FIXTURE = Path(__file__).parents[1] / "fixtures" / "captions.json"
SAID = {
    "a.png": ("A red square, on grey.", "Something red!"),
    "b.png": ("A green square on grey", "Something green"),
    "c.png": ("A blue square on grey", "something Blue"),
}


@pytest.fixture
def folder(tmp_path):
    """Thirty images of three colours, in Flickr8k's form."""
    place = tmp_path / "squares"
    (place / "Images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(30):
        pixels = np.full((40, 48, 3), 120, np.uint8)
        pixels[8:32, 8:32, number % 3] = 255 - number
        name = f"{number:02}.png"
        Image.fromarray(pixels).save(place / "Images" / name)
        lines += [f"{name},{sentence}" for sentence in SAID[f"{'abc'[number % 3]}.png"]]
    (place / "captions.txt").write_text("\n".join(lines) + "\n")
    return place


def recipe(folder, **fields):
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


def test_metrics_are_coco_captions():
    """Forty sentences of chance, judged by its own code (fixtures/make_captions.py)."""
    facts = json.loads(FIXTURE.read_text())
    found = [own[0].split() for own in facts["found"].values()]
    references = [[each.split() for each in own] for own in facts["references"].values()]
    scores = captioning_metrics.evaluate_captions(found, references, {"a dog"})
    assert [scores[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx(facts["bleu"], rel=1e-12)
    assert scores["rouge_l"] == pytest.approx(facts["rouge_l"], rel=1e-12)
    assert scores["cider"] == pytest.approx(facts["cider"], rel=1e-12)
    each = [captioning_metrics.compute_rouge_l(words, own) for words, own in zip(found, references, strict=True)]
    assert each == pytest.approx(facts["rouge_l_each"], rel=1e-12)
    assert captioning_metrics.compute_cider(found, references) == pytest.approx(facts["cider_each"], rel=1e-12)
    assert scores["count"] == 40


def test_what_is_said_again_is_counted():
    found = [["a", "dog"], ["a", "dog"], ["a", "cat"], ["two", "cats"]]
    references = [[["a", "dog"]], [["a", "cat"], ["a", "dog"]], [["the", "cat"]], [["cats"]]]
    scores = captioning_metrics.evaluate_captions(found, references, {"a dog", "a bird"})
    assert (scores["exact"], scores["distinct"], scores["copied"]) == (0.5, 0.75, 0.5)
    assert "copied" not in captioning_metrics.evaluate_captions(found, references, set())


# words


def test_sentences_are_cut_as_coco_caption_does():
    assert tokenizer.tokenize("A dog's tri-colored coat, isn't it?", "words") == [
        "a",
        "dog's",
        "tri-colored",
        "coat",
        "isn't",
        "it",
    ]
    assert tokenizer.tokenize("Ｔｗｏ ＤＯＧＳ — running...", "words") == ["two", "dogs", "running"]
    assert tokenizer.tokenize("Ein großer Hund läuft über die Straße.", "words")[:3] == ["ein", "großer", "hund"]


def test_japanese():
    sentence = "赤い服を着た女の子が階段を登っています。"
    assert tokenizer.tokenize(sentence, "characters")[:4] == ["赤", "い", "服", "を"]
    assert tokenizer.detokenize(tokenizer.tokenize("犬がAIを見る", "characters"), "characters") == "犬がaiを見る"
    with pytest.raises(Error, match=r"no spaces between the words.*--tokenizer japanese"):
        tokenizer.tokenize(sentence, "words")
    pytest.importorskip("janome", reason="needs the extra japanese")
    words = tokenizer.tokenize(sentence, "japanese")
    assert words[:4] == ["赤い", "服", "を", "着"]
    assert tokenizer.detokenize(words, "japanese") == sentence.rstrip("。")


def test_the_vocabulary_has_what_is_said_often():
    labels = tokenizer.build_vocabulary([["a", "dog"], ["a", "cat"], ["the", "dog"], ["a"]], 2)
    assert labels == ("<end>", "<begin>", "<unknown>", "a", "dog")
    known = {label: number for number, label in enumerate(labels)}
    assert tokenizer.encode_words(["a", "cat"], known) == [1, 3, 2, 0]
    with pytest.raises(Error, match="no word occurs 9 times"):
        tokenizer.build_vocabulary([["a"]], 9)


def test_rows_of_words():
    assert pad_sequences([[1, 5, 0], [1, 5, 6, 7, 0]], 4).tolist() == [[1, 5, 0, -1], [1, 5, 6, 0]]


# the network


def test_size_of_the_network():
    """GoogLeNet without its heads, an affine layer, its normalisation, the vectors of 8,791 words, an LSTM, and a bias
    for each word."""
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
def test_any_classifier_sees(encoder, options, features):
    torch.manual_seed(0)
    own = ShowAndTell(encoder=encoder, encoder_options=options, size=64, hidden=16)
    network = own.build_task(tuple(map(str, range(11)))).model
    normal = any(isinstance(layer, torch.nn.BatchNorm2d) for layer in network.encoder.modules())
    assert normal == (encoder not in ("vgg11", "deep-convnet") or "batch_norm=true" in options)
    images = torch.rand(2, 3, 64, 64)
    assert network.encode_images(images).shape == (2, features)
    scores = network(images, torch.tensor([[1, 4, 5], [1, 6, 0]]))
    assert scores.shape == (2, 3, 11)
    scores.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_it_speaks_as_it_was_taught():
    """Word by word, the scores are those of the whole sentence at once; and those of equations 10 to 12 by hand."""
    torch.manual_seed(0)
    network = models.show_and_tell(models.resnet20(1), 9, hidden=8, dropout=0.5).eval()
    features, words = torch.randn(2, 64), torch.tensor([[1, 4, 5], [1, 8, 3]])
    whole = network(features, words).log_softmax(2)
    state = network.init_state(features)
    for at in range(3):
        state, scores = network.step(state, words[:, at])
        torch.testing.assert_close(scores, whole[:, at])
    lstm = network.lstm
    h = c = torch.zeros(2, 8)
    for x in (network.image(features), *network.words(words).unbind(1)):
        i, f, g, o = (x @ lstm.weight_ih_l0.T + lstm.bias_ih_l0 + h @ lstm.weight_hh_l0.T + lstm.bias_hh_l0).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    by_hand = (h @ network.words.weight.T + network.bias).log_softmax(1)
    torch.testing.assert_close(scores, by_hand)


def test_the_loss_is_the_mean_over_words(folder):
    """Equation 13: minus the log-probability of each word and of the end, however long the sentences are."""
    own = recipe(folder)
    torch.manual_seed(0)
    data = own.load_data()
    task = own.build_task(data.labels)
    task.setup(Runtime.start("cpu", "float32"))
    images, words = next(iter(data.train))
    task.model.eval()
    loss, _ = task.compute_loss((images, words))
    total = count = 0
    for image, row in zip(images, words.tolist(), strict=True):
        sentence = [word for word in row if word >= 0]
        scores = task.model(task.normalize_images(image[None]), torch.tensor([sentence[:-1]]))
        total += F.cross_entropy(scores[0], torch.tensor(sentence[1:]), reduction="sum").item()
        count += len(sentence) - 1
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


# the search


def chances(words, longest, seed=0):
    """A language whose next word depends on the two before it."""
    torch.manual_seed(seed)
    scores = (2 * torch.randn(2, words, words, words)).log_softmax(3)

    def step(state, last):
        image, before = state
        return (image, last), scores[image, before, last]

    return step, (torch.arange(2), torch.zeros(2, dtype=torch.long))


def every(words, longest):
    """All sentences, their end included where they have one."""
    inner = [word for word in range(words) if word != 0]
    for count in range(longest):
        yield from ((*said, 0) for said in itertools.product(inner, repeat=count))
    yield from itertools.product(inner, repeat=longest)


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_a_wide_search_finds_what_a_search_of_all_finds(length):
    """Of 4 words and sentences of 4 at most, for two images at once."""
    words, longest = 4, 4
    step, state = chances(words, longest)
    said, total, lengths = beam_search.search(step, state, beam_size=4**4, max_words=longest, begin=1, end=0)
    # a beam may hold no more than there are words at the first step
    for image in range(2):
        best = {}
        for sentence in every(words, longest):
            own, score, last = (torch.tensor([image]), torch.zeros(1, dtype=torch.long)), 0.0, 1
            for word in sentence:
                own, scores = step(own, torch.tensor([last]))
                score, last = score + scores[0, word].item(), word
            best[sentence] = score / len(sentence) ** length
        ranked = (total[image] / lengths[image].float() ** length).argsort(descending=True)
        found = said[image, ranked[0]].tolist()
        found = tuple(found[: found.index(0) + 1] if 0 in found else found)
        assert found == max(best, key=best.get)


def test_a_search_of_one_is_greedy():
    step, state = chances(6, 5)
    said, total, lengths = beam_search.search(step, state, beam_size=1, max_words=5, begin=1, end=0)
    for image in range(2):
        own, last, score, sentence = (torch.tensor([image]), torch.zeros(1, dtype=torch.long)), 1, 0.0, []
        while len(sentence) < 5 and (not sentence or sentence[-1]):
            own, scores = step(own, torch.tensor([last]))
            last = int(scores[0].argmax())
            score += scores[0, last].item()
            sentence.append(last)
        assert said[image, 0].tolist()[: len(sentence)] == sentence
        assert total[image, 0].item() == pytest.approx(score, rel=1e-5)
        assert lengths[image, 0] == len(sentence)


def test_a_wider_search_finds_no_worse_sentences():
    step, state = chances(7, 6, seed=3)
    best = [
        beam_search.search(step, state, beam_size=beams, max_words=6, begin=1, end=0)[1][:, 0] for beams in (1, 3, 7)
    ]
    assert (best[1] >= best[0] - 1e-6).all()
    assert (best[2] >= best[1] - 1e-6).all()


def test_samples_come_as_often_as_they_should():
    """Of sentences of one word: their shares are their probabilities; of a low temperature only the likeliest comes."""
    step, state = chances(5, 1)
    how = {"max_words": 1, "begin": 1, "end": 0}
    generator = torch.Generator().manual_seed(0)
    said, total, _ = beam_search.sample(step, state, num_samples=4000, temperature=1.0, generator=generator, **how)
    _, scores = step(state, torch.ones(2, dtype=torch.long))
    for image in range(2):
        shares = said[image, :, 0].bincount(minlength=5) / 4000
        torch.testing.assert_close(shares, scores[image].exp(), rtol=0, atol=0.03)
        assert total[image].tolist() == sorted(total[image].tolist(), reverse=True)
    cold, _, _ = beam_search.sample(step, state, num_samples=50, temperature=0.01, generator=generator, **how)
    assert (cold[:, :, 0] == scores.argmax(1, keepdim=True)).all()


# the data


def test_flickr8k(folder):
    learned, val, test = captioning_data.load_dataset(str(folder), 0.1)
    assert [len(part) for part in (learned, val, test)] == [24, 3, 3]
    assert [path.name for path in test.items] == ["27.png", "28.png", "29.png"]
    assert test.captions[0] == ("A red square, on grey.", "Something red!")  # commas that nothing marks


def forms(folder):
    """The same images and sentences in every form, with parts where the form has them."""
    names = sorted(path.name for path in (folder / "Images").iterdir())
    said = {name: SAID[f"{'abc'[int(name[:2]) % 3]}.png"] for name in names}
    parts = {name: "train" if int(name[:2]) < 20 else "val" if int(name[:2]) < 25 else "test" for name in names}
    pairs = [(name, number, sentence) for name in names for number, sentence in enumerate(said[name])]
    tokens = "".join(f"{name}#{number}\t{sentence}\n" for name, number, sentence in pairs)
    lists = {
        f"Flickr_8k.{word}Images.txt": "".join(f"{name}\n" for name in names if parts[name] == part)
        for word, part in (("train", "train"), ("dev", "val"), ("test", "test"))
    }
    karpathy = [
        {"filename": name, "split": "restval" if parts[name] == "train" and int(name[:2]) > 9 else parts[name],
         "sentences": [{"raw": sentence} for sentence in said[name]]}
        for name in names
    ]  # fmt: skip
    coco = {
        f"annotations/captions_{word}2017.json": json.dumps({
            "images": [{"id": 5 + int(name[:2]), "file_name": name} for name in names if parts[name] in some],
            "annotations": [{"image_id": 5 + int(name[:2]), "caption": sentence}
                            for name, _, sentence in pairs if parts[name] in some],
        })
        for word, some in (("train", ("train",)), ("val", ("val", "test")))
    }  # fmt: skip
    rows = "".join(f'{name},"{sentence}",{parts[name]}\n' for name, _, sentence in pairs)
    return {
        "flickr8k tokens": {"Flickr8k.token.txt": tokens, **lists},
        "flickr30k": {"results.csv": "image_name| comment_number| comment\n"
                      + "".join(f"{name}| {number}| {sentence}\n" for name, number, sentence in pairs)},
        "karpathy": {"dataset.json": json.dumps({"images": karpathy})},
        "coco": coco,
        "table": {"said.csv": "image,sentence,split\n" + rows},
    }  # fmt: skip


@pytest.mark.parametrize("form", ["flickr8k tokens", "flickr30k", "karpathy", "coco", "table"])
def test_every_form(form, folder):
    files = forms(folder)[form]
    (folder / "captions.txt").unlink()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    sizes = {"flickr30k": [24, 3, 3], "coco": [20, 0, 10]}.get(form, [20, 5, 5])
    parts = captioning_data.load_dataset(str(folder), 0.1)
    assert [len(part) for part in parts] == sizes
    for part in parts:
        for path, sentences in zip(part.items, part.captions, strict=True):
            assert sentences == SAID[f"{'abc'[int(path.name[:2]) % 3]}.png"]
            assert path.exists()
    assert captioning_data.is_caption_dataset(str(folder))


def test_a_csv_alone_and_an_archive(folder, tmp_path):
    import shutil

    (folder / "captions.txt").rename(folder / "said.csv")
    assert len(captioning_data.load_dataset(str(folder / "said.csv"), 0.0)[0]) == 30
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    assert len(captioning_data.load_dataset(archive, 0.0)[0]) == 30


def test_what_is_wrong_is_told(folder, fukami, caplog):
    with (folder / "captions.txt").open("a") as file:
        file.write("nowhere.png,A dog\n29.png,\n")
    assert len(captioning_data.load_dataset(str(folder), 0.1)[0]) == 24
    assert "2 images or sentences are left out" in caplog.text
    (folder / "Images" / "03.png").write_bytes(b"broken")
    (folder / "Images" / "more.png").write_bytes((folder / "Images" / "04.png").read_bytes())
    answer = fukami("doctor", folder)
    assert answer.status == 1
    found = {(line["problem"], Path(line["file"]).name) for line in answer.json}
    assert {("missing", "captions.txt"), ("no sentence", "captions.txt"), ("broken", "03.png")} <= found
    assert ("no sentence", "more.png") in found
    lines = {line["problem"]: line["line"] for line in answer.json if Path(line["file"]).name == "captions.txt"}
    assert lines == {"missing": 62, "no sentence": 63}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset.json", "{", "is damaged"),
        ("dataset.json", '{"images": [{"split": "train"}]}', "KeyError"),
        ("said.csv", "image,caption\nx.png,Ü".encode("utf-16"), "UTF-8|no sentences"),
        ("notes.txt", "hello", "has no sentences"),
    ],
)
def test_broken_files_are_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(Error, match=message):
        captioning_data.load_dataset(str(tmp_path), 0.1)


def test_scenes_say_what_is_there():
    """Each object with its texture, from left to right, in one or two objects; always the same."""
    images, sentences = scenes.generate_captioned_images(0, 40)
    counts = {sentence.count(" and ") for (sentence,) in sentences}
    assert counts == {0, 1}
    for number, ((sentence,), image) in enumerate(zip(sentences, images, strict=True)):
        own = scenes.generate_scene(0, number, scenes.SPARSE)
        assert np.array_equal(image, own.image)
        middles = (own.boxes[:, 0] + own.boxes[:, 2]).tolist()
        order = sorted(range(len(middles)), key=middles.__getitem__)
        named = [scenes.LABELS[own.classes[at]] for at in order]
        said = [part.split()[-1] for part in sentence.split(" and ")]
        assert sorted(said) == sorted(named)
        if len(middles) == 2 and abs(middles[0] - middles[1]) > 8:  # hidden parts move a middle a little
            assert said == named
    with pytest.raises(UsageError, match="unknown data set"):
        captioning_data.load_dataset("scenez", 0.1)


# trainings


def test_it_learns_what_is_seen(folder, tmp_path, pageless):
    """Images that it has not seen, told by their colour."""
    found = train(recipe(folder, epochs=40, lr=5e-3), tmp_path / "run", device="cpu", precision="float32")
    assert found["count"] == 3
    assert found["exact"] == 1.0
    task = load(tmp_path / "run", device="cpu")
    (answer,) = task.predict([folder / "Images" / "28.png"])
    assert "green" in answer["caption"]
    assert answer["captions"][0]["caption"] == answer["caption"]
    assert 0 < answer["probability"] <= 1
    assert len({each["caption"] for each in answer["captions"]}) == len(answer["captions"])
    drawn = task.draw_prediction(folder / "Images" / "28.png", answer)
    assert drawn.height > drawn.width * 40 / 48


def test_a_frozen_encoder_is_asked_once(folder, tmp_path, pageless, monkeypatch):
    """What it sees is kept; a second run asks it nothing, and learns the same; its weights stay."""
    torch.manual_seed(0)
    encoder = models.resnet20(10)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    own = recipe(folder, init=str(tmp_path / "encoder.safetensors"))
    asked = []
    see = models.show_and_tell.__globals__["ShowAndTell"].encode_images

    def counted(self, images):
        asked.append(len(images))
        return see(self, images)

    monkeypatch.setattr(models.show_and_tell.__globals__["ShowAndTell"], "encode_images", counted)
    found = [train(own, tmp_path / name, device="cpu", precision="float32") for name in ("one", "two")]
    assert sum(asked) == 24 + 24 + 3  # each once, and its mirror image, and those to judge on
    assert found[0] == found[1]
    weights = load(tmp_path / "one", device="cpu").model.encoder.state_dict()
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in weights.items())


def test_an_encoder_learns_on_after_it_was_frozen(folder, tmp_path, pageless):
    torch.manual_seed(0)
    encoder = models.resnet20(10)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    own = recipe(folder, init=str(tmp_path / "encoder.safetensors"), finetune_epochs=1, epochs=2)
    train(own, tmp_path / "run", device="cpu", precision="float32")
    before, after = (load(tmp_path / "run" / part, device="cpu").model for part in ("frozen", ""))
    key = "conv1.weight"
    assert torch.equal(before.encoder.state_dict()[key], encoder.state_dict()[key])
    assert not torch.equal(after.encoder.state_dict()[key], encoder.state_dict()[key])


def test_streamed_it_learns_the_same_sentences(folder, tmp_path, pageless):
    """From files, where they do not fit into memory: with an encoder that learns, and with one that does not."""
    found = train(recipe(folder, memory_limit=0.0, epochs=2), tmp_path / "run", device="cpu", precision="float32")
    assert found["count"] == 3
    torch.manual_seed(0)
    save_file(models.resnet20(10).state_dict(), tmp_path / "encoder.safetensors")
    own = {"init": str(tmp_path / "encoder.safetensors"), "cache_limit": 0.0}
    results = [
        train(recipe(folder, memory_limit=memory, **own), tmp_path / str(memory), device="cpu", precision="float32")
        for memory in (0.0, 4.0)
    ]
    assert results[0] == results[1]


def test_checkpoints_leave_the_images_of_the_dataset_alone(folder, tmp_path, pageless, monkeypatch):
    """Each was opened for writing at each checkpoint, which a read-only dataset refuses."""
    opened = []
    monkeypatch.setattr(async_checkpoint, "_sync_file", opened.append)
    train(recipe(folder, memory_limit=0.0, epochs=1), tmp_path / "run", device="cpu", precision="float32")
    assert {path.name for path in opened} == {"metrics.jsonl"}


def test_it_answers_in_the_ways_it_is_asked_to(folder, tmp_path, pageless, fukami):
    train(recipe(folder, epochs=8), tmp_path / "run", device="cpu", precision="float32")
    image = folder / "Images" / "28.png"
    answers = {}
    for kind, words in {
        "beam": ["--set", "beam_size=20", "num_captions=9"],
        "greedy": ["--set", "decoding=greedy"],
        "sample": ["--set", "decoding=sample", "temperature=2.0", "num_captions=4"],
    }.items():
        answer = fukami("predict", tmp_path / "run", image, "--device", "cpu", *words)
        assert answer.status == 0, answer.err
        (answers[kind],) = answer.json
    assert len(answers["beam"]["captions"]) == 9
    assert len(answers["greedy"]["captions"]) == 1
    assert 1 <= len(answers["sample"]["captions"]) <= 4
    scores = [each["score"] for each in answers["beam"]["captions"]]
    assert scores == sorted(scores, reverse=True)
    assert math.log(answers["beam"]["probability"]) >= math.log(answers["greedy"]["probability"]) - 1e-6
    wrong = fukami("predict", tmp_path / "run", image, "--set", "beam=3")
    assert wrong.status in (1, 2)
    assert "did you mean 'beam_size'" in wrong.err
    wrong = fukami("predict", tmp_path / "run", image, "--set", "beam_size=many")
    assert wrong.status == 2
    assert "beam_size" in wrong.err


def test_a_beam_search_keeps_twenty_as_in_the_paper():
    """Vinyals et al. 2015, section 3.1; without a normalisation by the length."""
    assert (DecodingConfig().decoding, DecodingConfig().beam_size, DecodingConfig().length_penalty) == ("beam", 20, 0)


@pytest.mark.parametrize("decoding", ["beam", "greedy", "sample"])
def test_unknown_and_begin_are_never_said(decoding):
    """Even where the network finds nothing likelier."""
    torch.manual_seed(0)
    network = models.show_and_tell(models.resnet20(1), 8, hidden=8, dropout=0.0)
    with torch.no_grad():
        network.bias[[tokenizer.BEGIN, tokenizer.UNKNOWN]] = 20.0
    labels = ("<end>", "<begin>", "<unknown>", *"abcde")
    task = CaptioningTask(
        network, labels, SquareTransform(channels=3, size=32), DecodingConfig(decoding, beam_size=4, max_words=6)
    )
    task.setup(Runtime.start("cpu", "float32"))
    network.eval()
    with torch.inference_mode():
        told = task.generate_captions(torch.randn(3, 64))
    words = {word for own in told for each in own for word in each["caption"].split()}
    assert words
    assert words <= set("abcde")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"finetune_epochs": 2}, "give them with --init"),
        ({"encoder": "rcnn"}, "should be a classifier"),
        ({"encoder": "resnet19"}, "did you mean 'resnet18'"),
        ({"encoder": "vgg11", "encoder_options": ("batch_norms=true",)}, "did you mean 'batch_norm'"),
        ({"encoder": "vgg11", "encoder_options": ("batch_norm=1",)}, "batch_norm=1: expected batch_norm=VALUE"),
        ({"encoder": "vgg11", "encoder_options": ("size=32",)}, "whose own fields are .*batch_norm.*; size is no such"),
        ({"encoder": "resnet18", "encoder_options": ("lr=0.1",)}, "lr is no such field"),
        ({"augment": ("mixup",)}, "a sentence for a mixture"),
        ({"min_word_count": 0}, "min-word-count should be at least 1"),
    ],
)
def test_what_no_run_can_have_is_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        ShowAndTell(**fields).build_transform()


def test_weights_of_another_classifier_are_refused(folder, tmp_path):
    save_file(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "other.safetensors")
    own = recipe(folder, init=str(tmp_path / "other.safetensors"))
    task = own.build_task(("<end>", "<begin>", "<unknown>", "a"))
    with pytest.raises(Error, match="does not fit resnet20"):
        own.initialize_task(task)


def test_a_sentence_is_drawn_below_its_image():
    image = Image.new("RGB", (300, 200), "blue")
    short, long = (image_io.draw_caption(image, sentence) for sentence in ("a dog", "a dog and " * 20))
    assert short.width == long.width >= 300
    assert long.height > short.height > 2 * 200
    assert image_io.draw_caption(image, "犬が走る").height >= short.height
    assert isinstance(nn.Identity(), nn.Module)
