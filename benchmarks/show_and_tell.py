"""Show and Tell: caption metrics on Flickr8k and scenes compared with simple baselines, and speed of the beam search.

    python benchmarks/show_and_tell.py flickr8k [--weights FILE] [--seeds 0 1 2] [OPTIONS]
    python benchmarks/show_and_tell.py scenes [--seeds 0]
    python benchmarks/show_and_tell.py rate RUN [--beam-size 3]

``flickr8k`` trains on 800 of the sample's 1,000 images, with VGG-16's convolutions from FILE as the encoder, and
evaluates on the last 100. The baselines are the most common training caption, and the first caption of the training
image with the nearest features. ``scenes`` trains on the bundled scenes. ``rate`` compares a run's beam search with
one in plain Python, image by image, on the same features. Results go to results.csv.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional as F

from common.datasets import write_captions
from common.record import record, strip_folders, train_seeds

METRICS = (
    "bleu1",
    "bleu2",
    "bleu3",
    "bleu4",
    "rouge_l",
    "cider",
    "exact_fraction",
    "distinct_fraction",
    "copied_fraction",
)
SAMPLE = "flickr8k-1000"
DATA_NOTE = "a sample of Flickr8k: 800 images for training, 100 for validation, 100 for the test"
ROUNDS = 5
FLICKR8K = f"fukami train show-and-tell --data {SAMPLE} --encoder vgg16 --init {{weights}} --epochs 10 --eval-every 10"
SCENES = (
    "fukami train show-and-tell --data scenes --encoder deep-convnet "
    "--encoder-options batch_norm=true hidden=256 dropout=0 --size 48 --hidden 256 --dropout 0.1 "
    "--augment rotate=10 shift=6 scale=0.1 --lr 5e-3 --schedule one-cycle --epochs 32 --eval-every 32"
)


def train_and_record(benchmark: str, line: str, options: argparse.Namespace, note: str) -> None:
    """Train with each seed from the command line, and record the metrics."""
    for seed, result, seconds, command in train_seeds(line, options):
        for metric in METRICS:
            record(benchmark, metric, result[metric], seed=seed, seconds=seconds, command=command, note=note)


def evaluate_flickr8k(options: argparse.Namespace) -> None:
    """Train and evaluate the network and the baselines on the sample with a test split."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(options.out or folder) / SAMPLE
        if not data.exists():
            write_captions(data)
        train_and_record("show-and-tell flickr8k sample", FLICKR8K.replace(SAMPLE, str(data)), options, DATA_NOTE)
        evaluate_baselines(options, data)


def evaluate_baselines(options: argparse.Namespace, folder: Path) -> None:
    """Evaluate the most common training caption and the nearest neighbor's caption (cosine similarity)."""
    from fukami.captioning import data as captioning_data
    from fukami.captioning import metrics as captioning_metrics
    from fukami.captioning import tokenizer
    from fukami.engine.recipe import get_recipe
    from fukami.engine.runtime import Runtime

    recipe = get_recipe("show-and-tell")(data=str(folder), encoder="vgg16", init=options.weights)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start())
    task.prepare_training()
    for split in (data.train, data.test):
        split.setup(task.runtime)
    recipe.initialize_task(task)
    train_features, test_features = (
        F.normalize(task.extract_features(split), dim=1) for split in (data.train, data.test)
    )
    captions = captioning_data.load_dataset(str(folder), recipe.val_fraction)[0].captions
    sentences = [
        [tokenizer.tokenize(caption, recipe.tokenizer) for caption in image_captions] for image_captions in captions
    ]
    counts = Counter(" ".join(words) for image_captions in sentences for words in image_captions)
    most_common = min(counts, key=lambda caption: (-counts[caption], caption)).split()
    nearest = (test_features @ train_features.T).argmax(1).tolist()
    command = f"python benchmarks/show_and_tell.py {strip_folders(sys.argv[1:])}"
    for name, predictions in (
        ("commonest sentence", [most_common] * len(test_features)),
        ("nearest neighbor", [sentences[index][0] for index in nearest]),
    ):
        scores = captioning_metrics.evaluate_captions(predictions, data.test.references, data.test.training_captions)
        for metric in METRICS:
            record(f"flickr8k sample, {name}", metric, scores[metric], command=command, note=DATA_NOTE)


def evaluate_scenes(options: argparse.Namespace) -> None:
    """Train on the bundled scenes."""
    train_and_record(
        "show-and-tell scenes", SCENES, options, "8,000 scenes of one or two objects to train on, 200 to evaluate on"
    )


def measure_throughput(options: argparse.Namespace) -> None:
    """Measure the images per second of a run's beam search and of one in plain Python."""
    from fukami.engine import run_record
    from fukami.engine.load_run import load_task

    task = load_task(options.run, overrides={"beam_size": options.beam_size, "num_captions": 1})
    recipe, _ = run_record.read_recipe(Path(options.run))
    data = recipe.load_eval_data().eval_batches
    features = task.extract_features(data)
    our_seconds, plain_seconds = [], []
    with torch.inference_mode():
        for _ in range(ROUNDS):
            start = time.monotonic()
            captions = [candidates[0]["caption"] for candidates in task.generate_captions(features)]
            our_seconds.append(time.monotonic() - start)
            start = time.monotonic()
            plain_captions = [search_caption(task, row[None], options.beam_size) for row in features]
            plain_seconds.append(time.monotonic() - start)
    fraction_equal = statistics.mean(
        caption == plain_caption for caption, plain_caption in zip(captions, plain_captions, strict=True)
    )
    ratio = statistics.median(plain_seconds) / statistics.median(our_seconds)
    speeds = ", ".join(f"{len(features) / statistics.median(seconds):.4g}" for seconds in (our_seconds, plain_seconds))
    record(f"{read_recipe_name(options.run)} rate",
           f"relative throughput of beam size {options.beam_size} vs. a plain search", ratio,
           command=f"python benchmarks/show_and_tell.py rate {Path(options.run).name} --beam-size {options.beam_size}",
           note=f"{speeds} images per second from their features; "
           f"{fraction_equal:.0%} of the captions are equal")  # fmt: skip


def read_recipe_name(run: str) -> str:
    """Return the name of a run's recipe."""
    from fukami.engine import run_record
    from fukami.engine.recipe import get_recipe_name

    return get_recipe_name(type(run_record.read_recipe(Path(run))[0]))


def search_caption(task, features, beam_size: int) -> str:
    """Search the most likely caption of one image by a plain beam search."""
    from fukami.captioning import tokenizer

    active, finished = [(0.0, [tokenizer.BEGIN], task.model.init_state(task.normalize_images(features)))], []
    for _ in range(task.decoding_config.max_tokens):
        expanded = []
        for score, words, state in active:
            next_state, scores = task.decode_step(state, torch.tensor([words[-1]], device=features.device))
            log_probs, indices = scores[0].topk(beam_size)
            expanded += [
                (score + log_prob, [*words, index], next_state)
                for log_prob, index in zip(log_probs.tolist(), indices.tolist(), strict=True)
            ]
        kept = sorted([*expanded, *finished], key=lambda beam: -beam[0])[:beam_size]
        finished = [beam for beam in kept if beam[1][-1] == tokenizer.END]
        active = [beam for beam in kept if beam[1][-1] != tokenizer.END]
        if not active:
            break
    _, words, _ = max([*active, *finished], key=lambda beam: beam[0])
    return tokenizer.detokenize(
        (task.labels[word] for word in words if word > tokenizer.UNKNOWN), task.decoding_config.tokenizer
    )


def main() -> None:
    """Run the selected benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["flickr8k", "scenes", "rate"])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--weights", default="imagenet", help="File of VGG-16's convolutions.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--beam-size", type=int, default=3)
    parser.add_argument("--out", help="Folder for the runs; temporary by default.")
    options, options.more = parser.parse_known_args()
    if options.benchmark == "rate" and not options.run:
        parser.error("specify a run")
    {"flickr8k": evaluate_flickr8k, "scenes": evaluate_scenes, "rate": measure_throughput}[options.benchmark](options)


if __name__ == "__main__":
    main()
