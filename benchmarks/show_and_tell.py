"""Show and Tell: what it says of Flickr8k's images and of scenes beside what costs nothing, and how fast it speaks.

    python benchmarks/show_and_tell.py flickr8k [--weights FILE] [--seeds 0 1 2] [--part test] [OPTIONS]
    python benchmarks/show_and_tell.py scenes [--seeds 0]
    python benchmarks/show_and_tell.py rate RUN [--beams 3]

``flickr8k`` trains on 800 of the sample's 1,000 images, the encoder VGG-16 whose convolutions are in FILE, and judges
on its last 100; beside it are the training set's commonest sentence, and the first sentence of the training image
whose features are nearest. ``scenes`` trains on the embedded scenes. ``rate`` times a run's beam search against one
written in plain Python, image by image, on the same features. Results go to results.csv.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional as F

from common.record import anywhere, each_seed, record

METRICS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "exact", "distinct", "copied")
SAMPLE = "flickr8k-1000"
ROUNDS = 5
FLICKR8K = f"fukami train show-and-tell --data {SAMPLE} --encoder vgg16 --init {{weights}} --epochs 10 --eval-every 10"
SCENES = (
    "fukami train show-and-tell --data scenes --encoder deep-convnet "
    "--encoder-options batch_norm=true hidden=256 dropout=0 --size 48 --hidden 256 --dropout 0.1 "
    "--augment rotate=10 shift=6 scale=0.1 --lr 5e-3 --schedule one-cycle --epochs 32 --eval-every 32"
)


def trainings(benchmark: str, line: str, options: argparse.Namespace, note: str) -> None:
    """Train with each seed from the command line, and record the metrics."""
    for seed, result, seconds, command in each_seed(line, options):
        for metric in METRICS:
            record(benchmark, metric, result[metric], seed=seed, seconds=seconds, command=command, note=note)


def flickr8k(options: argparse.Namespace) -> None:
    """The network, and what costs nothing."""
    trainings("show-and-tell flickr8k sample", FLICKR8K + f" --split {options.part}", options, note(options))
    baselines(options)


def note(options: argparse.Namespace) -> str:
    """What was learned from and judged on."""
    return f"a sample of Flickr8k: 800 images to train on, 100 to judge on ({options.part})"


def baselines(options: argparse.Namespace) -> None:
    """The commonest sentence of the training, and that of the image whose features are nearest (cosine)."""
    from fukami.captioning import data as captioning_data
    from fukami.captioning import metrics as captioning_metrics
    from fukami.captioning import tokenizer
    from fukami.engine.recipe import get_recipe
    from fukami.engine.runtime import Runtime

    recipe = get_recipe("show-and-tell")(data=SAMPLE, encoder="vgg16", init=options.weights, split=options.part)
    data = recipe.load_data()
    task = recipe.build_task(data.labels)
    task.setup(Runtime.start())
    for part in (data.train, data.val):
        part.setup(task.runtime)
    recipe.initialize_task(task)
    learned, judged = (F.normalize(task.extract_features(part), dim=1) for part in (data.train, data.val))
    told = captioning_data.load_dataset(SAMPLE, recipe.holdout)[0].captions
    sentences = [[tokenizer.tokenize(text, recipe.tokenizer) for text in own] for own in told]
    counts = Counter(" ".join(words) for own in sentences for words in own)
    commonest = min(counts, key=lambda text: (-counts[text], text)).split()
    nearest = (judged @ learned.T).argmax(1).tolist()
    command = f"python benchmarks/show_and_tell.py {anywhere(sys.argv[1:])}"
    for name, found in (
        ("commonest sentence", [commonest] * len(judged)),
        ("nearest neighbour", [sentences[at][0] for at in nearest]),
    ):
        scores = captioning_metrics.evaluate_captions(found, data.val.references, data.val.training_captions)
        for metric in METRICS:
            record(f"flickr8k sample, {name}", metric, scores[metric], command=command, note=note(options))


def scenes(options: argparse.Namespace) -> None:
    """Sentences of scenes, word for word."""
    trainings(
        "show-and-tell scenes", SCENES, options, "8,000 scenes of one or two objects to train on, 200 to judge on"
    )


def rate(options: argparse.Namespace) -> None:
    """The images a second that a run says something of, by its own search and by one in plain Python."""
    import fukami
    from fukami.engine import checkpoint

    task = fukami.load(options.run, overrides={"beam_size": options.beams, "num_captions": 1})
    recipe, _ = checkpoint.read_recipe(Path(options.run))
    judged = recipe.load_eval_data()
    features = task.extract_features(judged)
    ours, theirs = [], []
    with torch.inference_mode():
        for _ in range(ROUNDS):
            began = time.monotonic()
            found = [own[0]["caption"] for own in task.generate_captions(features)]
            ours.append(time.monotonic() - began)
            began = time.monotonic()
            plainly = [plain(task, row[None], options.beams) for row in features]
            theirs.append(time.monotonic() - began)
    alike = statistics.mean(one == other for one, other in zip(found, plainly, strict=True))
    ratio = statistics.median(theirs) / statistics.median(ours)
    speeds = ", ".join(f"{len(features) / statistics.median(each):.4g}" for each in (ours, theirs))
    record(f"{recipe_name(options.run)} rate", f"rate of beam {options.beams} over that of a plain search", ratio,
           command=f"python benchmarks/show_and_tell.py rate {Path(options.run).name} --beams {options.beams}",
           note=f"{speeds} images a second from their features; {alike:.0%} of the sentences are alike")  # fmt: skip


def recipe_name(run: str) -> str:
    """The name of a run's recipe."""
    from fukami.engine import checkpoint
    from fukami.engine.recipe import get_recipe_name

    return get_recipe_name(type(checkpoint.read_recipe(Path(run))[0]))


def plain(task, features, beams: int) -> str:
    """The likeliest sentence for one image, beam by beam, as it is usually written."""
    from fukami.captioning import tokenizer

    alive, done = [(0.0, [tokenizer.BEGIN], task.model.init_state(task.normalize_images(features)))], []
    for _ in range(task.decoding.max_words):
        grown = []
        for score, words, state in alive:
            after, scores = task.decode_step(state, torch.tensor([words[-1]], device=features.device))
            best, numbers = scores[0].topk(beams)
            grown += [
                (score + own, [*words, number], after)
                for own, number in zip(best.tolist(), numbers.tolist(), strict=True)
            ]
        kept = sorted([*grown, *done], key=lambda each: -each[0])[:beams]
        done = [each for each in kept if each[1][-1] == tokenizer.END]
        alive = [each for each in kept if each[1][-1] != tokenizer.END]
        if not alive:
            break
    _, words, _ = max([*alive, *done], key=lambda each: each[0])
    return tokenizer.detokenize(
        (task.labels[word] for word in words if word > tokenizer.UNKNOWN), task.decoding.tokenizer
    )


def main() -> None:
    """Run the part that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["flickr8k", "scenes", "rate"])
    parser.add_argument("run", nargs="?")
    parser.add_argument("--weights", default="imagenet", help="a file of VGG-16's convolutions")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", default="test", choices=["test", "val"])
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--out", help="a folder where the runs stay")
    options, options.more = parser.parse_known_args()
    if options.benchmark == "rate" and not options.run:
        parser.error("name a run")
    {"flickr8k": flickr8k, "scenes": scenes, "rate": rate}[options.benchmark](options)


if __name__ == "__main__":
    main()
