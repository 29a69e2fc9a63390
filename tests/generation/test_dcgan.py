"""Tests of DCGAN: networks, training steps, metrics and generated images."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fukami as package
from fukami import Error, UsageError, models
from fukami.cli.serve import build_run_info
from fukami.engine.load_run import load_task
from fukami.engine.runtime import Runtime
from fukami.generation import data as generation_data
from fukami.generation import features as generation_features
from fukami.generation import metrics as generation_metrics
from fukami.generation import samples as generation_samples
from fukami.generation.dcgan import DCGAN
from fukami.generation.task import GenerationResults
from fukami.leaderboard import runs as leaderboard_runs
from fukami.serving import page

SMALL = {"base_channels": 4, "batch_size": 32, "eval_samples": 40, "epochs": 1}


@pytest.fixture
def few_digits(monkeypatch):
    """Reduce the bundled digits to 200."""
    from fukami.data import digits

    images, targets = digits.load_digits()
    monkeypatch.setattr(digits, "load_digits", lambda: (images[:200], targets[:200]))


@pytest.fixture
def colors(tmp_path, random):
    """Folder of images of one color each, at several depths."""
    root = tmp_path / "colors"
    for index in range(24):
        folder = root / ("deep/down" if index % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.broadcast_to(random.integers(0, 256, 3, dtype=np.uint8), (32, 32, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{index}.png")
    return root


@pytest.fixture
def build_task(few_digits):
    """Function that builds an untrained task and its data."""

    def build(**fields):
        recipe = DCGAN(**SMALL | fields)
        data = recipe.load_data()
        torch.manual_seed(0)
        task = recipe.build_task(data.labels)
        task.setup(Runtime.start("cpu", "float32"))
        task.prepare_training()
        return task, data

    return build


def test_other_reference_images_have_the_size_and_channels_of_the_run(build_task, colors):
    task, data = build_task()
    assert data.labels == ("28", "1")
    other = DCGAN(**SMALL).with_data(str(colors), data.labels).load_eval_data()
    (images,) = {tuple(images.shape[1:]) for images, _ in other.eval_batches}
    assert images == (1, 28, 28)
    assert task.evaluate(other.eval_batches)["count"] == 24


def test_networks_have_the_papers_layers():
    """Figure 1: channels and sizes of the feature maps, and the number of parameters."""
    generator, discriminator = models.dcgan_generator(), models.dcgan_discriminator()
    assert generator.noise.weight.shape == (1024 * 4 * 4, 100)
    transposed = [layer for layer in generator.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.weight.shape[:2] for layer in transposed] == [(1024, 512), (512, 256), (256, 128), (128, 3)]
    assert [layer.kernel_size for layer in transposed] == [(5, 5)] * 4
    filters = 25 * (1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3) + 3
    batch_norm = 2 * (1024 + 512 + 256 + 128)
    assert sum(p.numel() for p in generator.parameters()) == 100 * 16384 + filters + batch_norm
    features = discriminator.extract_features(torch.zeros(2, 3, 64, 64))
    assert [tuple(maps.shape[1:]) for maps in features] == [(128, 32, 32), (256, 16, 16), (512, 8, 8), (1024, 4, 4)]
    assert not any(isinstance(layer, nn.MaxPool2d | nn.AvgPool2d) for layer in discriminator.modules())


@pytest.mark.parametrize("size", [28, 32, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel_size", [4, 5])
def test_networks_support_every_size(size, channels, kernel_size):
    options = {"channels": channels, "base_channels": 4, "kernel_size": kernel_size}
    generated = models.dcgan_generator(size, **options)(torch.rand(2, 100))
    assert generated.shape == (2, channels, size, size)
    assert generated.abs().max() <= 1
    assert models.dcgan_discriminator(size, **options)(generated).shape == (2,)


def test_weights_are_initialized_as_in_the_paper():
    """Section 4: N(0, 0.02)."""
    torch.manual_seed(0)
    for network in (models.dcgan_generator(base_channels=64), models.dcgan_discriminator(base_channels=64)):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.weight.numel() > 1e4:
                assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
                assert layer.weight.mean().item() == pytest.approx(0, abs=1e-3)


def test_unknown_size_is_an_error():
    with pytest.raises(ValueError, match="28, 32, 64, 128"):
        models.dcgan_generator(48)


@pytest.mark.parametrize("stable", [False, True])
def test_steps_equal_those_of_a_plain_training_loop(build_task, stable):
    """The reference has the same initial weights, noise and images, and the usual two losses and optimizers."""
    (task, data), (reference, _) = build_task(stable=stable, ema_decay=0), build_task(stable=stable, ema_decay=0)
    batches = list(data.train)[:3]
    generator, discriminator = reference.model, reference.discriminator
    generator_optimizer, discriminator_optimizer = (
        torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999)) for network in (generator, discriminator)
    )
    torch.manual_seed(1)
    results = [task.step(batch) for batch in batches]
    torch.manual_seed(1)
    for batch, metrics in zip(batches, results, strict=True):
        real = batch[0] / 127.5 - 1
        generated = generator(2 * torch.rand(len(real), 100) - 1)
        with parametrize.cached():  # weights are normalized once per step
            scores = discriminator(real), discriminator(generated.detach())
        if stable:
            loss = (1 - scores[0]).relu().mean() + (1 + scores[1]).relu().mean()
        else:
            ones = torch.ones(len(real))
            loss = F.binary_cross_entropy_with_logits(scores[0], ones)
            loss = loss + F.binary_cross_entropy_with_logits(scores[1], 0 * ones)
        discriminator_optimizer.zero_grad()
        loss.backward()
        discriminator_optimizer.step()
        score = discriminator(generated)
        generator_loss = -score.mean() if stable else F.binary_cross_entropy_with_logits(score, torch.ones(len(real)))
        generator_optimizer.zero_grad()
        generator_loss.backward()
        generator_optimizer.step()
        assert metrics["discriminator_loss"].item() == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["generator_loss"].item() == pytest.approx(generator_loss.item(), rel=1e-4, abs=1e-5)
    for network, expected in ((task.model, generator), (task.discriminator, discriminator)):
        for name, value in network.state_dict().items():
            if not stable or "original" in name or "parametrizations" not in name:
                torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-3, atol=2e-5, msg=name)


def test_spectral_norms_are_one(build_task):
    """After some steps, the largest singular value of each layer's weight matrix is nearly 1."""
    task, data = build_task(stable=True)
    for _ in range(15):
        for batch in data.train:
            task.step(batch)
    task.discriminator.eval()
    for layer in task.discriminator.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert torch.linalg.svdvals(layer.weight.flatten(1))[0].item() == pytest.approx(1, abs=0.1)


def test_moving_average_of_the_generator(build_task):
    """The average equals a plain computation over three steps; its decay is lower in the first steps."""
    task, data = build_task(ema_decay=0.2)
    expected = task.model.layers[2].weight.detach().clone()
    for step, batch in enumerate(list(data.train)[:3], 1):
        task.step(batch)
        weight = max(10 / (10 + step), 0.8)
        expected = (1 - weight) * expected + weight * task.model.layers[2].weight.detach()
    torch.testing.assert_close(task.ema_generator.layers[2].weight, expected)
    assert weight == 0.8
    assert task.get_modules()["model"] is task.ema_generator


def test_discriminator_learns_against_a_fixed_generator(build_task):
    """The discriminator accuracy soon reaches 1."""
    task, data = build_task(lr=2e-3)
    for group in task.optimizer.param_groups:
        group["initial_lr"] = 0.0
        group["lr"].zero_()
    for _ in range(8):
        for batch in data.train:
            metrics = task.step(batch)
    assert metrics["discriminator_accuracy"] == 1
    assert metrics["discriminator_loss"] < 0.2
    assert (
        min(task.predict_real_probability(data.val.images[:8]))
        > 0.5
        > max(task.predict_real_probability(task.generate_images(task.sample_latents(8))))
    )


def test_fid_of_normal_distributions():
    """Equation 6 in closed form, for independent variables with different means and standard deviations."""
    torch.manual_seed(0)
    one, other = torch.randn(200_000, 3), torch.randn(200_000, 3) * torch.tensor([1.0, 2.0, 0.5]) + 1
    expected = 3 + (0 + (2 - 1) ** 2 + (0.5 - 1) ** 2)
    assert generation_metrics.compute_frechet_distance(one, other) == pytest.approx(expected, rel=0.02)
    assert generation_metrics.compute_frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("count", "width"), [(300, 20), (30, 50)])
def test_fid_equals_scipy(count, width):
    """SciPy's square root of the covariances' product, for more and for fewer samples than features."""
    from scipy.linalg import sqrtm

    random = np.random.default_rng(0)
    mixing = random.normal(size=(width, width))
    one, other = random.normal(size=(count, width)) @ mixing, random.normal(size=(count + 7, width)) + 0.3
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    difference = one.mean(0) - other.mean(0)
    expected = difference @ difference + np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    distance = generation_metrics.compute_frechet_distance(torch.from_numpy(one), torch.from_numpy(other))
    assert distance == pytest.approx(expected, rel=1e-4)


def test_kid_equals_the_sum_over_pairs():
    """The kernel of every pair, summed in Python."""
    torch.manual_seed(0)
    one, other = torch.randn(5, 4).double(), torch.randn(7, 4).double() + 1
    kernel = lambda a, b: (float(a @ b) / 4 + 1) ** 3  # noqa: E731
    within = [
        sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (one, other)
    ]
    between = sum(kernel(a, b) for a in one for b in other) / 35
    assert generation_metrics.compute_kernel_distance(one, other) == pytest.approx(sum(within) - 2 * between)


def test_distances_do_not_depend_on_the_chunks(monkeypatch):
    torch.manual_seed(0)
    one, other = torch.randn(25, 4), torch.randn(30, 4) + 1
    expected = generation_metrics.compute_kernel_distance(one, other), generation_metrics.compute_nearest_distances(one)
    monkeypatch.setattr(generation_metrics, "CHUNK_SIZE", 7)
    assert generation_metrics.compute_kernel_distance(one, other) == pytest.approx(expected[0])
    torch.testing.assert_close(generation_metrics.compute_nearest_distances(one), expected[1])


def test_equal_samples_are_duplicates_although_some_real_images_are_equal():
    torch.manual_seed(0)
    real = torch.randn(200, 8)
    real[:10] = real[0]
    assert generation_metrics.compute_duplicate_fraction(torch.ones(200, 8), real) == 1


def test_the_feature_extractor_is_checked_before_the_training(tmp_path):
    with pytest.raises(Error, match=r"typo\.pth"):
        package.train(DCGAN(**SMALL, eval_features="typo.pth"), tmp_path / "run", device="cpu", precision="float32")
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_the_bundled_classifier_has_features_of_images_of_every_size(size):
    extractor = generation_features.load_feature_extractor("digits", size, 3)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    assert extractor.extract(images, torch.device("cpu")).shape == (2, 50)


def test_a_single_reference_image_is_rejected(colors):
    with pytest.raises(Error, match="1 images can be read for the evaluation, which needs at least 2"):
        DCGAN(data=str(colors), val_fraction=0.01).load_data()


def test_duplicate_fraction_is_the_fraction_of_near_duplicates():
    """30 % of the samples are near-duplicates."""
    torch.manual_seed(0)
    real, generated = torch.randn(500, 8), torch.randn(500, 8)
    assert generation_metrics.compute_duplicate_fraction(generated, real) < 0.05
    generated[:150] = generated[0] + 1e-3 * torch.randn(150, 8)
    assert generation_metrics.compute_duplicate_fraction(generated, real) == pytest.approx(0.3, abs=0.03)


def test_duplicate_fraction_does_not_depend_on_the_feature_extractor(build_task):
    """Repetition uses pixel features, since network features of merely similar images are close."""
    task, data = build_task()
    fractions = []
    for name in ("digits", "pixels"):
        task.cached_real_features, task.load_feature_extractor = (
            None,
            lambda name=name: generation_features.load_feature_extractor(name, 28, 1),
        )
        fractions.append(task.evaluate(data.val)["duplicate_fraction"])
    real = data.val.images
    pixels = [
        F.interpolate(images.float(), (56, 56)).unfold(2, 7, 7).unfold(3, 7, 7).mean((4, 5)).flatten(1) / 255
        for images in (task.generate_images(task.sample_latents(len(real))), real)
    ]
    generated_distances, real_distances = (
        (features[:, None] - features).square().sum(2).sqrt().fill_diagonal_(9).amin(1) for features in pixels
    )
    expected = float((generated_distances < real_distances.quantile(0.01)).float().mean())
    assert fractions == [pytest.approx(expected, abs=0.01)] * 2


def test_the_features_of_digits_do_not_change_the_number_of_threads(monkeypatch):
    """A resumed run keeps its number, even with fewer processors; the number of threads affects the rounding."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("fukami.engine.runtime.count_cpus", lambda: 1)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        generation_features.load_feature_extractor("digits", 28, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(num_threads)


def test_features_of_digits_come_from_the_bundled_classifier(few_digits):
    """The classifier layer returns the classifier's logits; real digits are legible."""
    extractor = generation_features.load_feature_extractor("auto", 28, 1)
    assert extractor.name == "digits"
    val = DCGAN(**SMALL).load_data().val
    features = extractor.extract(val.images, torch.device("cpu"))
    task = load_task("deep-convnet", device="cpu")
    with torch.inference_mode():
        expected = task.model(val.images.float() / 255)
        torch.testing.assert_close(extractor.classifier(features), expected)
    metrics = extractor.measure_legibility(features)
    assert metrics["legible_fraction"] > 0.7
    assert metrics["num_predicted_classes"] == 10


def test_vgg_features_equal_torchvisions(tmp_path):
    from torchvision.models import vgg16

    torch.manual_seed(0)
    reference = vgg16(weights=None).features.eval()
    torch.save({f"features.{key}": value for key, value in reference.state_dict().items()}, tmp_path / "vgg16.pth")
    state = torch.get_rng_state()
    extractor = generation_features.load_feature_extractor(str(tmp_path / "vgg16.pth"), 32, 3)
    assert torch.equal(torch.get_rng_state(), state)  # a resumed training builds it again
    assert extractor.name == "vgg16"
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in (generation_features.IMAGENET_MEAN, generation_features.IMAGENET_STD)
    )
    with torch.inference_mode():
        resized = F.interpolate(images / 255, (224, 224), mode="bilinear", align_corners=False)
        expected = reference((resized - mean) / std).mean((2, 3))
    torch.testing.assert_close(extractor.extract(images, torch.device("cpu")), expected, rtol=1e-3, atol=1e-5)


def test_inception_of_torchvision_and_of_fid(tmp_path, monkeypatch):
    """Weights for 1,008 classes select the pooling layers of the original FID network."""
    from torchvision.models import inception_v3
    from torchvision.models.inception import InceptionA, InceptionC, InceptionE

    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    inputs = F.interpolate(images.float(), (299, 299), mode="bilinear", align_corners=False) / 127.5 - 1
    features = {}
    for classes in (1000, 1008):
        network = inception_v3(weights=None, num_classes=classes, init_weights=False).eval()
        torch.save(network.state_dict(), tmp_path / f"{classes}.pth")
        extractor = generation_features.load_feature_extractor(str(tmp_path / f"{classes}.pth"), 64, 3)
        features[extractor.name] = extractor.extract(images, torch.device("cpu"))
        network.fc = nn.Identity()
        if classes == 1008:  # patch the pooling of each module before its forward pass
            for module in network.modules():
                if isinstance(module, InceptionA | InceptionC | InceptionE):
                    last = module is network.Mixed_7c
                    module.register_forward_pre_hook(
                        lambda module, inputs, last=last: _patch_pooling(monkeypatch, last)
                    )
        with torch.inference_mode():
            expected = network(inputs)
        monkeypatch.undo()
        torch.testing.assert_close(features[extractor.name], expected, rtol=1e-3, atol=1e-4)
    assert [*features] == ["torchvision_inception", "inception"]


def _patch_pooling(monkeypatch, last):
    """Make average pooling exclude the padding, or replace it by max pooling in the last module."""
    avg_pool, max_pool = torch._C._nn.avg_pool2d, F.max_pool2d
    avg_pool_without_padding = lambda x, **options: avg_pool(x, **options, count_include_pad=False)  # noqa: E731
    monkeypatch.setattr(F, "avg_pool2d", max_pool if last else avg_pool_without_padding)


@pytest.mark.parametrize("name", ["inception", "torchvision_inception", "vgg16", "digits", "pixels"])
def test_only_distances_of_the_original_network_are_named_fid_and_kid(name):
    features = [torch.randn(30, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    extractor = generation_features.FeatureExtractor(name, nn.Identity())
    metrics = GenerationResults(extractor, features, features[::-1], torch.zeros(1, 1, 8, 8)).compute_metrics()
    expected = ("fid_inception", "kid_inception") if name == "inception" else (f"frechet_{name}", f"kernel_{name}")
    assert tuple(metrics)[:2] == expected
    assert leaderboard_runs.is_lower_better(expected[0])
    assert leaderboard_runs.is_lower_better(expected[1])


def test_invalid_inception_weights_are_errors(tmp_path):
    torch.save({"Mixed_7c.branch": torch.zeros(1), "fc.bias": torch.zeros(1000)}, tmp_path / "x.pth")
    with pytest.raises(Error, match=r"does not match Inception v3.*Conv2d_1a_3x3.conv.weight is missing"):
        generation_features.load_feature_extractor(str(tmp_path / "x.pth"), 64, 3)
    torch.save({"Mixed_7c.branch": torch.zeros(1), "fc.bias": torch.zeros(10)}, tmp_path / "x.pth")
    with pytest.raises(Error, match="1,000 or 1,008 classes, not 10"):
        generation_features.load_feature_extractor(str(tmp_path / "x.pth"), 64, 3)
    for name in ("inception", "vgg"):
        monkeypatch = pytest.MonkeyPatch()
        monkeypatch.setenv("FUKAMI_DATA", str(tmp_path))
        with pytest.raises(Error, match=r"no weights file (pt_inception|vgg19)\* or .*\* found; specify its path"):
            generation_features.load_feature_extractor(name, 64, 3)
        monkeypatch.undo()


def test_load_any_folder_of_images(colors, few_scenes):
    train_images, reference_images = generation_data.load_dataset(str(colors), 0.0)
    assert len(train_images) == len(reference_images) == 24
    assert generation_data.infer_image_shape(train_images) == (32, 3)
    train_images, reference_images = generation_data.load_dataset(str(colors), 0.25)
    assert (len(train_images), len(reference_images)) == (18, 6)
    assert not {*train_images.items} & {*reference_images.items}
    assert len(generation_data.load_dataset("scenes", 0.0)[0]) == 8
    assert generation_data.infer_image_shape(generation_data.load_dataset("digits", 0.0)[0]) == (28, 1)
    with pytest.raises(UsageError, match="did you mean 'mnist'"):
        generation_data.load_dataset("mnits", 0.0)


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match="contains no images"):
        DCGAN(data=str(tmp_path / "empty")).load_data()


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"accumulate": 2}, "smaller --batch-size"),
        ({"images": "photos", "annotations": "boxes"}, "specify their folder with --data"),
        ({"augment": ("mixup",)}, "mixup"),
        ({"ema_decay": 1.0}, "ema-decay should be"),
        ({"eval_samples": 1}, "eval-samples should be"),
    ],
)
def test_invalid_fields_are_errors(fields, hint):
    with pytest.raises(UsageError, match=hint):
        DCGAN(**fields)


@pytest.mark.report
def test_command_line(fukami, colors, tmp_path):
    """Train on a folder of images, then generate samples, an interpolation, an arithmetic and the nearest images."""
    options = [
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
    result = fukami(
        "train", "dcgan", "--data", colors, "--epochs", "30", "--lr", "2e-4", *options, "--out", tmp_path / "run"
    )
    assert result.status == 0, result.err
    (metrics,) = result.json
    assert {"frechet_pixels", "kernel_pixels", "duplicate_fraction", "count"} <= metrics.keys()
    assert (tmp_path / "run" / "preview.png").exists()
    assert "data:image/webp" in (tmp_path / "run" / "report.html").read_text()
    task = load_task(tmp_path / "run")
    run_info = build_run_info(task, (str(tmp_path / "run"),), "auto", None)
    assert run_info.keys() == {"recipe", "members", "precision", "versions"}  # a generator has no classes
    assert b"labels" not in page.render_page(run_info, "http://localhost/")
    options = ["--interpolation-steps", "5", "--arithmetic", "1 2 - 3 + 4", "--nearest"]
    folder = tmp_path / "samples"
    result = fukami("predict", tmp_path / "run", "--num-samples", "6", "--seed", "3", *options, "--out", folder)
    assert result.status == 0, result.err
    assert [sample["file"] for sample in result.json] == [str(folder / f"{n:04}.png") for n in range(1, 7)]
    assert all(0 <= sample["real_probability"] <= 1 and sample["seed"] == 3 for sample in result.json)
    assert all(str(colors) in sample["nearest"] for sample in result.json)
    with Image.open(result.json[0]["file"]) as image:
        assert image.size == (32, 32)
    for name in ("grid.png", "interpolation.png", "interpolation.webp", "arithmetic.png", "nearest.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) >= 64
            assert name.endswith("png") or 5 < image.n_frames <= 25  # WebP merges equal frames
    again = fukami("predict", tmp_path / "run", "--num-samples", "6", "--seed", "3", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "0001.png").read_bytes() == (folder / "0001.png").read_bytes()
    assert "grid.png" in again.err
    evaluation = fukami("eval", tmp_path / "run", "--data", colors, "--device", "cpu")
    assert evaluation.json[0]["frechet_pixels"] == pytest.approx(metrics["frechet_pixels"], rel=1e-3)
    prediction = fukami("predict", tmp_path / "run", colors / "0.png", "--out", tmp_path / "predictions")
    assert 0 <= prediction.json[0]["real_probability"] <= 1


def test_interpolation_is_linear_between_consecutive_latent_vectors(build_task, tmp_path, monkeypatch):
    task, _ = build_task()
    rows, generate = [], task.generate_images
    monkeypatch.setattr(task, "generate_images", lambda latents: rows.append(latents) or generate(latents))
    latents = task.sample_latents(3, seed=2)
    generation_samples.write_interpolation(task, latents, 3, tmp_path)
    for row, (one, other) in zip(rows, pairwise(latents), strict=True):
        torch.testing.assert_close(row, torch.stack([one, (one + other) / 2, other]))


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--num-samples", "4"], "--out"),
        (["a.png", "--num-samples", "4", "--out", "x"], "no input files"),
        (["--num-samples", "1", "--interpolation-steps", "3", "--out", "x"], "at least 2 images"),
        (["a.png", "--nearest"], "add --num-samples"),
        (["--num-samples", "4", "--out", "x", "--views", "2"], "--views is for predictions"),
        (["--num-samples", "4", "--out", "x", "--confidence", "0"], "--confidence is for predictions"),
        (["a.mp4", "--fps", "5"], "the inputs are videos"),
        (["a.png", "--fps", "0.0001"], "--fps should be frames per second, 0 or from 0.001 to 1000"),
    ],
)
def test_usage_errors(fukami, arguments, hint):
    result = fukami("predict", "deep-convnet", *arguments)
    assert result.status == 2
    assert hint in result.err


@pytest.mark.parametrize(("text", "hint"), [("1 - 4", "from 1 to 3"), ("1 - two", "as in '1 2 3 - 4 5 6 \\+ 7 8 9'")])
def test_invalid_arithmetic(text, hint):
    with pytest.raises(UsageError, match=hint):
        generation_samples.parse_arithmetic(text, 3)


def test_classifier_cannot_generate_images(fukami):
    result = fukami("predict", "deep-convnet", "--num-samples", "4", "--out", "x")
    assert result.status == 2
    assert "is not the run of a generator" in result.err


def test_arithmetic_adds_means(build_task, tmp_path, monkeypatch):
    """The image in the middle is generated from the signed sum of the means."""
    task, _ = build_task()
    latents = task.sample_latents(5, seed=2)
    terms = generation_samples.parse_arithmetic("1, 2 - 3 +4 5", 5)
    assert [(term.sign, term.numbers) for term in terms] == [(1, (1, 2)), (-1, (3,)), (1, (4, 5))]
    plotted = []
    plot_latent_arithmetic = generation_samples.generation_plots.plot_latent_arithmetic
    monkeypatch.setattr(
        "fukami.generation.plots.plot_latent_arithmetic",
        lambda columns, neighbors: plotted.append(neighbors) or plot_latent_arithmetic(columns, neighbors),
    )
    generation_samples.write_arithmetic(task, latents, terms, tmp_path)
    expected = (latents[0] + latents[1]) / 2 - latents[2] + (latents[3] + latents[4]) / 2
    assert torch.equal(plotted[0][4], task.generate_images(expected[None])[0])


def test_nearest_images_of_training_images_are_themselves(build_task, tmp_path):
    _, data = build_task()
    extractor = generation_features.load_feature_extractor("pixels", 28, 1)
    images = data.train.images[[3, 150, 77]]
    results = generation_samples.write_nearest_images(images, data.train, extractor, torch.device("cpu"), tmp_path)
    assert [result["nearest"] for result in results] == ["#3", "#150", "#77"]
    assert all(result["distance"] == pytest.approx(0, abs=1e-3) for result in results)


def test_evaluation_warns_of_mode_collapse_and_of_a_strong_discriminator(build_task, caplog):
    """The generator returns one image for any noise."""
    task, data = build_task()
    with torch.no_grad():
        task.ema_generator.noise.weight.zero_()
    metrics = task.evaluate(data.val)
    assert metrics["duplicate_fraction"] == 1
    task.on_evaluation(metrics)
    assert "mode collapse: 100%" in caplog.text
    caplog.clear()
    task.statistics.discriminator_accuracy.fill_(0.999)
    task.on_evaluation({**metrics, "duplicate_fraction": 0.0})
    assert "discriminator accuracy is 99.9%" in caplog.text


def test_preview_history_limits_the_number_of_grids():
    from fukami.generation.task import MAX_FRAMES, PreviewHistory

    history = PreviewHistory()
    for value in range(3 * MAX_FRAMES):
        history.add(Image.new("L", (4, 4), value))
    assert MAX_FRAMES / 2 <= len(history.decode_frames()) <= MAX_FRAMES
    other = PreviewHistory()
    other.load_state_dict(json.loads(json.dumps({"encoded": []})))
    other.load_state_dict(history.state_dict())
    assert len(other.decode_frames()) == len(history.decode_frames())
    assert abs(np.asarray(other.decode_frames()[-1].convert("L")).mean() - (3 * MAX_FRAMES - 1)) < 3


@pytest.mark.slow
def test_training_on_digits_lowers_the_frechet_distance():
    """Eight epochs of 1,600 of the bundled digits bring the samples much closer to digits."""
    recipe = DCGAN(base_channels=8, eval_samples=500, batch_size=32, lr=1e-3)
    data = recipe.load_data()
    torch.manual_seed(0)
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start("cpu"))
    task.prepare_training()
    before = task.evaluate(data.val)
    for _ in range(8):
        for batch in data.train:
            task.step(batch)
    after = task.evaluate(data.val)
    assert after["frechet_digits"] < 0.6 * before["frechet_digits"]
