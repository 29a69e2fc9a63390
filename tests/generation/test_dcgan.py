"""DCGAN: networks, updates, judgement and what it makes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fukami as package
from fukami import Error, UsageError, leaderboard, models
from fukami.engine.runtime import Runtime
from fukami.generation import data as generation_data
from fukami.generation import features as generation_features
from fukami.generation import metrics as generation_metrics
from fukami.generation import samples as generation_samples
from fukami.generation.dcgan import DCGAN
from fukami.generation.task import GenerationResults

SMALL = {"base_channels": 4, "batch_size": 32, "eval_samples": 40, "epochs": 1}


@pytest.fixture
def few_digits(monkeypatch):
    """The embedded digits, two hundred of them."""
    from fukami.data import digits

    images, targets = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (images[:200], targets[:200]))


@pytest.fixture
def colours(tmp_path, random):
    """Images of one colour each, anywhere in a folder."""
    root = tmp_path / "colours"
    for number in range(24):
        folder = root / ("deep/down" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        page = np.broadcast_to(random.integers(0, 256, 3, dtype=np.uint8), (32, 32, 3))
        Image.fromarray(np.ascontiguousarray(page)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def begun(few_digits):
    """A task at its beginning, and its data."""

    def make(**fields):
        recipe = DCGAN(**SMALL | fields)
        data = recipe.load_data()
        torch.manual_seed(0)
        task = recipe.build_task(data.labels)
        task.setup(Runtime.start("cpu", "float32"))
        return task, data

    return make


def test_the_papers_networks():
    """Figure 1: maps and their sizes; the parameters are counted by hand."""
    generator, discriminator = models.dcgan_generator(), models.dcgan_discriminator()
    assert generator.noise.weight.shape == (1024 * 4 * 4, 100)
    transposed = [layer for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.weight.shape[:2] for layer in transposed] == [(1024, 512), (512, 256), (256, 128), (128, 3)]
    assert [layer.kernel_size for layer in transposed] == [(5, 5)] * 4
    filters = 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 3
    normal = 2 * (1024 + 512 + 256 + 128)
    assert sum(p.numel() for p in generator.parameters()) == 100 * 16384 + filters + normal
    maps = discriminator.extract_features(torch.zeros(2, 3, 64, 64))
    assert [tuple(each.shape[1:]) for each in maps] == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]
    assert not any(isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) for layer in discriminator.modules())


@pytest.mark.parametrize("size", [28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [4, 5])
def test_every_size(size, channels, kernel):
    form = {"channels": channels, "base_channels": 4, "kernel_size": kernel}
    made = models.dcgan_generator(size, **form)(torch.rand(2, 100))
    assert made.shape == (2, channels, size, size)
    assert made.abs().max() <= 1
    assert models.dcgan_discriminator(size, **form)(made).shape == (2,)


def test_weights_begin_as_in_the_paper():
    """Section 4: N(0, 0.02)."""
    torch.manual_seed(0)
    for network in (models.dcgan_generator(base_channels=64), models.dcgan_discriminator(base_channels=64)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 1e4:
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_no_such_size():
    with pytest.raises(ValueError, match="28, 32, 64, 128"):
        models.dcgan_generator(48)


@pytest.mark.parametrize("stable", [False, True])
def test_an_update_is_that_of_a_plain_loop(begun, stable):
    """Two losses, two optimizers, as they are usually written, from the same weights, noise and images."""
    (task, data), (other, _) = begun(stable=stable, ema_decay=0), begun(stable=stable, ema_decay=0)
    batches = list(data.train)[:3]
    generator, discriminator = other.model, other.discriminator
    steps = [
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in (generator, discriminator)
    ]
    torch.manual_seed(1)
    found = [task.step(batch) for batch in batches]
    torch.manual_seed(1)
    for batch, own in zip(batches, found, strict=True):
        real = batch[0] / 127.5 - 1
        made = generator(2 * torch.rand(len(real), 100) - 1)
        with parametrize.cached():  # weights are normalised once for an update
            scores = discriminator(real), discriminator(made.detach())
        if stable:
            loss = (1 - scores[0]).relu().mean() + (1 + scores[1]).relu().mean()
        else:
            ones = torch.ones(len(real))
            loss = F.binary_cross_entropy_with_logits(scores[0], ones)
            loss = loss + F.binary_cross_entropy_with_logits(scores[1], 0 * ones)
        steps[1].zero_grad()
        loss.backward()
        steps[1].step()
        score = discriminator(made)
        against = -score.mean() if stable else F.binary_cross_entropy_with_logits(score, torch.ones(len(real)))
        steps[0].zero_grad()
        against.backward()
        steps[0].step()
        assert own["discriminator_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
        assert own["generator_loss"].item() == pytest.approx(against.item(), rel=1e-4, abs=1e-5)
    for network, theirs in ((task.model, generator), (task.discriminator, discriminator)):
        for name, value in network.state_dict().items():
            if not stable or "original" in name or "parametrizations" not in name:
                torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-3, atol=2e-5, msg=name)


def test_spectral_norms_are_one(begun):
    """After some updates the largest singular value of each layer's filters, as a matrix, is nearly 1."""
    task, data = begun(stable=True)
    for _ in range(15):
        for batch in data.train:
            task.step(batch)
    task.discriminator.eval()
    for layer in task.discriminator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=0.1)


def test_the_average_follows(begun):
    """By hand, after three updates: it is slow only once there is something to be averaged."""
    task, data = begun(ema_decay=0.2)
    expected = task.model.layers[2].weight.detach().clone()
    for number, batch in enumerate(list(data.train)[:3], 1):
        task.step(batch)
        weight = max(10 / (10 + number), 0.8)
        expected = (1 - weight) * expected + weight * task.model.layers[2].weight.detach()
    torch.testing.assert_close(task.ema_generator.layers[2].weight, expected)
    assert weight == 0.8
    assert task.get_modules()["model"] is task.ema_generator


def test_the_discriminator_learns_first(begun):
    """Against a generator that stays as it is, it tells all apart soon."""
    task, data = begun(lr=2e-3)
    for group in task.optimizer.param_groups:
        group["initial_lr"] = 0.0
        group["lr"].zero_()
    for _ in range(8):
        for batch in data.train:
            found = task.step(batch)
    assert found["told_apart"] == 1
    assert found["discriminator_loss"] < 0.2
    assert (
        min(task.predict_real_probability(data.val.images[:8]))
        > 0.5
        > max(task.predict_real_probability(task.generate_images(task.sample_latents(8))))
    )


def test_fid_of_normal_distributions():
    """Equation 6 where it can be done by hand: independent numbers, other means and other deviations."""
    torch.manual_seed(0)
    one, other = torch.randn(200_000, 3), torch.randn(200_000, 3) * torch.tensor([1.0, 2.0, 0.5]) + 1
    expected = 3 + (0 + (2 - 1) ** 2 + (0.5 - 1) ** 2)
    assert generation_metrics.compute_frechet_distance(one, other) == pytest.approx(expected, rel=0.02)
    assert generation_metrics.compute_frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("count", "width"), [(300, 20), (30, 50)])
def test_fid_agrees_with_scipy(count, width):
    """The root of the covariances' product as it is usually taken, with more and with fewer samples than numbers."""
    from scipy.linalg import sqrtm

    random = np.random.default_rng(0)
    mixed = random.normal(size=(width, width))
    one, other = random.normal(size=(count, width)) @ mixed, random.normal(size=(count + 7, width)) + 0.3
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    difference = one.mean(0) - other.mean(0)
    expected = difference @ difference + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    found = generation_metrics.compute_frechet_distance(torch.from_numpy(one), torch.from_numpy(other))
    assert found == pytest.approx(expected, rel=1e-4)


def test_kid_by_hand():
    """Every pair, one after another."""
    torch.manual_seed(0)
    one, other = torch.randn(5, 4).double(), torch.randn(7, 4).double() + 1
    kernel = lambda a, b: (float(a @ b) / 4 + 1) ** 3  # noqa: E731
    within = [
        sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (one, other)
    ]
    between = sum(kernel(a, b) for a in one for b in other) / 35
    assert generation_metrics.compute_kernel_distance(one, other) == pytest.approx(sum(within) - 2 * between)


def test_repeated_samples_are_counted():
    """Of a hundred samples thirty are one again."""
    torch.manual_seed(0)
    real, made = torch.randn(500, 8), torch.randn(500, 8)
    assert generation_metrics.compute_repetition(made, real) < 0.05
    made[:150] = made[0] + 1e-3 * torch.randn(150, 8)
    assert generation_metrics.compute_repetition(made, real) == pytest.approx(0.3, abs=0.03)


def test_what_is_repeated_does_not_depend_on_the_judge(begun):
    """Images are compared as they are: features of a network lie near each other for what is merely alike."""
    task, data = begun()
    found = []
    for judge in ("digits", "pixels"):
        task.cached_real_features, task.load_feature_extractor = (
            None,
            lambda judge=judge: generation_features.load_feature_extractor(judge, 28, 1),
        )
        found.append(task.evaluate(data.val)["repeated"])
    real = data.val.images
    blocks = [
        F.interpolate(each.float(), (56, 56)).unfold(2, 7, 7).unfold(3, 7, 7).mean((4, 5)).flatten(1) / 255
        for each in (task.generate_images(task.sample_latents(len(real))), real)
    ]
    made, usual = ((each[:, None] - each).square().sum(2).sqrt().fill_diagonal_(9).amin(1) for each in blocks)
    assert found == [pytest.approx(float((made < usual.quantile(0.01)).float().mean()), abs=0.01)] * 2


def test_digits_are_seen_by_the_shipped_network(few_digits):
    """Its scores are those that it gives as a classifier; real digits are legible."""
    seen = generation_features.load_feature_extractor("auto", 28, 1)
    assert seen.name == "digits"
    val = DCGAN(**SMALL).load_data().val
    features = seen.extract(val.images, torch.device("cpu"))
    task = package.load("deep-convnet", device="cpu")
    with torch.inference_mode():
        expected = task.model(val.images.float() / 255)
        torch.testing.assert_close(seen.classifier(features), expected)
    found = seen.measure_legibility(features)
    assert found["legible"] > 0.7
    assert found["classes"] == 10


def test_vgg_sees_as_torchvisions_features(tmp_path):
    from torchvision.models import vgg16

    torch.manual_seed(0)
    theirs = vgg16(weights=None).features.eval()
    torch.save({f"features.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "vgg16.pth")
    seen = generation_features.load_feature_extractor(str(tmp_path / "vgg16.pth"), 32, 3)
    assert seen.name == "vgg16"
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    mean, std = (
        torch.tensor(each).view(3, 1, 1)
        for each in (generation_features.IMAGENET_MEAN, generation_features.IMAGENET_STD)
    )
    with torch.inference_mode():
        large = F.interpolate(images / 255, (224, 224), mode="bilinear", align_corners=False)
        expected = theirs((large - mean) / std).mean((2, 3))
    torch.testing.assert_close(seen.extract(images, torch.device("cpu")), expected, rtol=1e-3, atol=1e-5)


def test_inception_as_torchvision_and_as_fid_have_it(tmp_path, monkeypatch):
    """The weights say which: of 1,008 classes the poolings are those of the network that FID was defined with."""
    from torchvision.models import inception_v3
    from torchvision.models.inception import InceptionA, InceptionC, InceptionE

    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    given = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False) / 127.5 - 1
    found = {}
    for classes in (1000, 1008):
        network = inception_v3(weights=None, num_classes=classes, init_weights=False).eval()
        torch.save(network.state_dict(), tmp_path / f"{classes}.pth")
        seen = generation_features.load_feature_extractor(str(tmp_path / f"{classes}.pth"), 64, 3)
        found[seen.name] = seen.extract(images, torch.device("cpu"))
        network.fc = nn.Identity()
        if classes == 1008:  # by hand: each module's pooling replaced by one that is asked for its kind
            for module in network.modules():
                if isinstance(module, InceptionA | InceptionC | InceptionE):
                    last = module is network.Mixed_7c
                    module.register_forward_pre_hook(lambda module, inputs, last=last: _pools(monkeypatch, last))
        with torch.inference_mode():
            expected = network(given)
        monkeypatch.undo()
        torch.testing.assert_close(found[seen.name], expected, rtol=1e-3, atol=1e-4)
    assert [*found] == ["torchvision_inception", "inception"]


def _pools(monkeypatch, last):
    """From now on an average pooling leaves its frame out, or is a maximum."""
    average, most = torch._C._nn.avg_pool2d, F.max_pool2d
    plain = lambda x, **how: average(x, **how, count_include_pad=False)  # noqa: E731
    monkeypatch.setattr(F, "avg_pool2d", most if last else plain)


@pytest.mark.parametrize("name", ["inception", "torchvision_inception", "vgg16", "digits", "pixels"])
def test_fid_and_kid_are_said_of_the_network_alone_that_they_are_defined_with(name):
    features = [torch.randn(30, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    own = generation_features.FeatureExtractor(name, nn.Identity())
    found = GenerationResults(own, features, features[::-1], torch.zeros(1, 1, 8, 8)).compute_metrics()
    expected = ("fid_inception", "kid_inception") if name == "inception" else (f"frechet_{name}", f"kernel_{name}")
    assert tuple(found)[:2] == expected
    assert leaderboard.is_lower_better(expected[0])
    assert leaderboard.is_lower_better(expected[1])


def test_wrong_weights_of_inception_are_refused(tmp_path):
    torch.save({"Mixed_7c.branch": torch.zeros(1), "fc.bias": torch.zeros(1000)}, tmp_path / "x.pth")
    with pytest.raises(Error, match=r"does not fit Inception v3.*Conv2d_1a_3x3.conv.weight is missing"):
        generation_features.load_feature_extractor(str(tmp_path / "x.pth"), 64, 3)
    torch.save({"Mixed_7c.branch": torch.zeros(1), "fc.bias": torch.zeros(10)}, tmp_path / "x.pth")
    with pytest.raises(Error, match="1,000 or 1,008 classes, not 10"):
        generation_features.load_feature_extractor(str(tmp_path / "x.pth"), 64, 3)
    for name in ("inception", "vgg"):
        monkey = pytest.MonkeyPatch()
        monkey.setenv("FUKAMI_DATA", str(tmp_path))
        with pytest.raises(Error, match="there is no file"):
            generation_features.load_feature_extractor(name, 64, 3)
        monkey.undo()


def test_any_folder_of_images(colours, few_scenes):
    learned, judged = generation_data.load_dataset(str(colours), 0.0)
    assert len(learned) == len(judged) == 24
    assert generation_data.infer_image_shape(learned) == (32, 3)
    kept, compared = generation_data.load_dataset(str(colours), 0.25)
    assert (len(kept), len(compared)) == (18, 6)
    assert not {*kept.items} & {*compared.items}
    assert len(generation_data.load_dataset("scenes", 0.0)[0]) == 8
    assert generation_data.infer_image_shape(generation_data.load_dataset("digits", 0.0)[0]) == (28, 1)
    with pytest.raises(UsageError, match="did you mean 'mnist'"):
        generation_data.load_dataset("mnits", 0.0)


def test_a_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match="has 0 images"):
        DCGAN(data=str(tmp_path / "empty")).load_data()


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"accumulate": 2}, "smaller --batch-size"),
        ({"augment": ("mixup",)}, "mixup"),
        ({"ema_decay": 1.0}, "ema-decay should be"),
        ({"eval_samples": 1}, "eval-samples should be"),
    ],
)
def test_what_no_run_can_have_is_refused(fields, hint):
    with pytest.raises(UsageError, match=hint):
        DCGAN(**fields)


def test_command_line(fukami, colours, tmp_path):
    """Trained on a folder of colours; images made, a way between them, a sum, and the nearest real ones."""
    small = [
        "--base-channels",
        "4",
        "--batch-size",
        "8",
        "--eval-samples",
        "12",
        "--eval-features",
        "pixels",
        "--device",
        "cpu",
    ]
    answer = fukami(
        "train", "dcgan", "--data", colours, "--epochs", "30", "--lr", "2e-3", *small, "--out", tmp_path / "run"
    )
    assert answer.status == 0, answer.err
    (found,) = answer.json
    assert {"frechet_pixels", "kernel_pixels", "repeated", "count"} <= found.keys()
    assert (tmp_path / "run" / "preview.png").exists()
    assert "data:image/webp" in (tmp_path / "run" / "report.html").read_text()
    more = ["--interpolation-steps", "5", "--arithmetic", "1 2 - 3 + 4", "--nearest"]
    answer = fukami("predict", tmp_path / "run", "--num-samples", "6", "--seed", "3", *more, "--out", tmp_path / "made")
    assert answer.status == 0, answer.err
    assert [each["file"] for each in answer.json] == [str(tmp_path / "made" / f"{n:04}.png") for n in range(1, 7)]
    assert all(0 <= each["real"] <= 1 and each["seed"] == 3 for each in answer.json)
    assert all(str(colours) in each["nearest"] for each in answer.json)
    with Image.open(answer.json[0]["file"]) as image:
        assert image.size == (32, 32)
    for name in ("grid.png", "interpolation.png", "interpolation.webp", "arithmetic.png", "nearest.png"):
        with Image.open(tmp_path / "made" / name) as image:
            assert min(image.size) >= 64
            assert name.endswith("png") or 5 < image.n_frames <= 25  # WebP joins frames that are alike
    again = fukami("predict", tmp_path / "run", "--num-samples", "6", "--seed", "3", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "0001.png").read_bytes() == (tmp_path / "made" / "0001.png").read_bytes()
    assert "grid.png" in again.err
    judged = fukami("eval", tmp_path / "run", "--data", colours, "--device", "cpu")
    assert judged.json[0]["frechet_pixels"] == pytest.approx(found["frechet_pixels"], rel=1e-3)
    told = fukami("predict", tmp_path / "run", colours / "0.png", "--out", tmp_path / "told")
    assert 0 <= told.json[0]["real"] <= 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--num-samples", "4"], "--out"),
        (["a.png", "--num-samples", "4", "--out", "x"], "of no files"),
        (["--num-samples", "1", "--interpolation-steps", "3", "--out", "x"], "at least 2 images"),
        (["a.png", "--nearest"], "give --num-samples"),
        (["--num-samples", "3", "--arithmetic", "1 - 4", "--out", "x"], "from 1 to 3"),
        (["--num-samples", "3", "--arithmetic", "1 - two", "--out", "x"], "as in '1 2 3 - 4 5 6 + 7 8 9'"),
    ],
)
def test_wrong_usage(fukami, words, hint):
    answer = fukami("predict", "deep-convnet", *words)
    assert answer.status == 2
    assert hint in answer.err or "makes none" in answer.err


def test_a_classifier_makes_no_images(fukami):
    answer = fukami("predict", "deep-convnet", "--num-samples", "4", "--out", "x")
    assert answer.status == 2
    assert "makes none" in answer.err


def test_sums_are_of_means(begun, tmp_path, monkeypatch):
    """The image in the middle is that of the sum of the means."""
    task, _ = begun()
    codes = task.sample_latents(5, seed=2)
    terms = generation_samples.parse_arithmetic("1, 2 - 3 +4 5", 5)
    assert [(term.sign, term.numbers) for term in terms] == [(1, (1, 2)), (-1, (3,)), (1, (4, 5))]
    drawn = []
    sums = generation_samples.generation_plots.plot_latent_arithmetic
    monkeypatch.setattr(
        "fukami.generation.plots.plot_latent_arithmetic",
        lambda columns, around: drawn.append(around) or sums(columns, around),
    )
    generation_samples.write_arithmetic(task, codes, terms, tmp_path)
    middle = (codes[0] + codes[1]) / 2 - codes[2] + (codes[3] + codes[4]) / 2
    assert torch.equal(drawn[0][4], task.generate_images(middle[None])[0])


def test_the_nearest_are_found(begun, tmp_path):
    """Images that were learned from are their own nearest."""
    _, data = begun()
    seen = generation_features.load_feature_extractor("pixels", 28, 1)
    own = data.train.images[[3, 150, 77]]
    found = generation_samples.write_nearest_images(own, data.train, seen, torch.device("cpu"), tmp_path)
    assert [each["nearest"] for each in found] == ["#3", "#150", "#77"]
    assert all(each["distance"] == pytest.approx(0, abs=1e-3) for each in found)


def test_a_generator_that_repeats_itself_is_told_of(begun, caplog):
    """It draws one image whatever the noise."""
    task, data = begun()
    with torch.no_grad():
        task.ema_generator.noise.weight.zero_()
    found = task.evaluate(data.val)
    assert found["repeated"] == 1
    task.on_evaluation(found)
    assert "repeats itself: 100%" in caplog.text
    caplog.clear()
    task.statistics.apart.fill_(0.999)
    task.on_evaluation({**found, "repeated": 0.0})
    assert "99.9% apart" in caplog.text


def test_the_album_keeps_so_many_grids():
    from fukami.generation.task import MAX_FRAMES, PreviewHistory

    album = PreviewHistory()
    for number in range(3 * MAX_FRAMES):
        album.add(Image.new("L", (4, 4), number))
    assert MAX_FRAMES / 2 <= len(album.decode_frames()) <= MAX_FRAMES
    other = PreviewHistory()
    other.load_state_dict(json.loads(json.dumps({"encoded": []})))
    other.load_state_dict(album.state_dict())
    assert len(other.decode_frames()) == len(album.decode_frames())
    assert abs(np.asarray(other.decode_frames()[-1].convert("L")).mean() - (3 * MAX_FRAMES - 1)) < 3


def test_digits_are_learned_a_little():
    """After eight passes over 1,600 of the embedded digits, what is made is much nearer to digits than it was."""
    recipe = DCGAN(base_channels=8, eval_samples=500, batch_size=32, lr=1e-3)
    data = recipe.load_data()
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu"))
    before = task.evaluate(data.val)
    for _ in range(8):
        for batch in data.train:
            task.step(batch)
    after = task.evaluate(data.val)
    assert after["frechet_digits"] < 0.6 * before["frechet_digits"]
