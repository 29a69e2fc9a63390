"""The training step of torchvision's reference script, written anew after its description and behaviour.

https://github.com/pytorch/vision/tree/main/references/classification (``train_one_epoch`` of train.py, MetricLogger of
utils.py, ClassificationPresetTrain of presets.py), with its defaults: Pillow's images and the transforms of version
1 in worker processes, at most 16; a RandomSampler, pinned memory, ``cudnn.benchmark``; after every step the loss and
the top-1 and top-5 accuracies are fetched into meters, and a line is printed every ten steps. Its options
``--opt adamw`` and ``--opt sgd_nesterov`` give the optimizers that all are timed with. Its ``--amp`` is float16 with a
scaler of the loss, on a GPU; on a CPU the script has none, and what is timed there is its step under autocast to
bfloat16.
"""

import collections
import contextlib
import time

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from work import AFFINE, CUDA, DEVICE, MEAN, STD, Images, Work

EVERY = 10  # steps between two printed lines


class Meter:
    """The last values of a series, and the mean of all."""

    def __init__(self, length=20):
        self.last = collections.deque(maxlen=length)
        self.total, self.count = 0.0, 0

    def add(self, value, times=1):
        """One more value, which stands for as many."""
        self.last.append(value)
        self.total, self.count = self.total + value * times, self.count + times

    def __str__(self):
        return f"{torch.tensor(list(self.last)).median().item():.4f} ({self.total / self.count:.4f})"


def batches(work):
    """The loader of a map-style set of images; the random ones are on the device for this peer, too."""
    if work.load == "resnet50":
        return work.loader()
    moves, normalise = [], []
    if work.load == "deep-convnet-augmented":
        moves = [transforms.RandomAffine(**AFFINE)]
    if work.load in ("resnet20", "resnet56"):
        moves = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        normalise = [transforms.Normalize(MEAN, STD)]
    floats = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    images = Images(*work.read(), transforms.Compose([*moves, *floats, *normalise]))
    return DataLoader(
        images,
        batch_size=work.options.batch,
        sampler=RandomSampler(images),
        num_workers=min(16, work.options.workers),
        pin_memory=True,
    )


def hits(output, target, ranks):
    """The percentage of targets among the first ranks, for each number of ranks."""
    with torch.no_grad():
        best = output.topk(max(ranks), 1).indices.t()
        right = best.eq(target[None])
        return [right[:rank].flatten().sum(dtype=torch.float32) * (100.0 / len(target)) for rank in ranks]


def epoch(work, model, criterion, optimizer, loader, scaler):
    """One pass, or as much of it as the clock wants; returns whether it has enough."""
    model.train()
    meters = collections.defaultdict(Meter)
    meters["lr"], meters["img/s"] = Meter(1), Meter(10)
    asked = time.time()
    for step, (image, target) in enumerate(loader):
        meters["data"].add(time.time() - asked)
        began = time.time()
        image, target = image.to(DEVICE), target.to(DEVICE)
        kind = torch.float16 if CUDA else torch.bfloat16
        with torch.autocast(DEVICE, kind) if work.mixed else contextlib.nullcontext():
            output = model(image)
            loss = criterion(output, target)
        optimizer.zero_grad()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        first, fifth = hits(output, target, (1, 5))
        meters["loss"].add(loss.item())
        meters["lr"].add(optimizer.param_groups[0]["lr"])
        meters["acc1"].add(first.item(), len(image))
        meters["acc5"].add(fifth.item(), len(image))
        meters["img/s"].add(len(image) / (time.time() - began))
        if work.clock.step(loss, len(image)):
            return True
        meters["time"].add(time.time() - asked)
        if step % EVERY == 0:
            print(f"[{step}/{len(loader)}]", "  ".join(f"{name}: {meter}" for name, meter in meters.items()))
        asked = time.time()
    return False


def main():
    """Pass after pass until the clock has its windows."""
    work = Work()
    torch.backends.cudnn.benchmark = True
    model = work.network().to(DEVICE)
    if work.compile:
        model = torch.compile(model)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.0)
    optimizer = work.optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cuda") if work.mixed and CUDA else None
    loader = batches(work)
    work.clock.start()
    while not epoch(work, model, criterion, optimizer, loader, scaler):
        pass
    precision = ("float16" if CUDA else "bfloat16") if work.mixed else "float32"
    work.clock.tell(precision=precision, workers=loader.num_workers)


if __name__ == "__main__":
    main()
