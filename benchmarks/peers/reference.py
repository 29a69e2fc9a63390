"""Training step of torchvision's reference script, reimplemented from its description and behavior.

https://github.com/pytorch/vision/tree/main/references/classification (``train_one_epoch`` of train.py, MetricLogger of
utils.py, ClassificationPresetTrain of presets.py), with its defaults: Pillow images and version 1 transforms in at most
16 worker processes, a RandomSampler, pinned memory, ``cudnn.benchmark``. After every step, meters fetch the loss and
the top-1 and top-5 accuracies; every ten steps a line is printed. Its options ``--opt adamw`` and ``--opt
sgd_nesterov`` are the optimizers of all loops. On a GPU its ``--amp`` is float16 with loss scaling. On a CPU the script
has no mixed precision; the step is timed with autocast to bfloat16.
"""

import collections
import contextlib
import time

import torch
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from work import AFFINE, CUDA, DEVICE, MEAN, STD, Images, Work

PRINT_INTERVAL = 10  # steps between printed lines


class Meter:
    """Running median of the last values, and mean of all values."""

    def __init__(self, length=20):
        self.last = collections.deque(maxlen=length)
        self.total, self.count = 0.0, 0

    def add(self, value, times=1):
        """Add a value that counts ``times`` times."""
        self.last.append(value)
        self.total, self.count = self.total + value * times, self.count + times

    def __str__(self):
        return f"{torch.tensor(list(self.last)).median().item():.4f} ({self.total / self.count:.4f})"


def build_loader(work):
    """Build the loader; the random images of ResNet-50 are on the device, as for the other loops."""
    if work.load == "resnet50":
        return work.loader()
    augmentation, normalization = [], []
    if work.load == "deep-convnet-augmented":
        augmentation = [transforms.RandomAffine(**AFFINE)]
    if work.load in ("resnet20", "resnet56"):
        augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        normalization = [transforms.Normalize(MEAN, STD)]
    conversion = [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float)]
    images = Images(*work.read(), transforms.Compose([*augmentation, *conversion, *normalization]))
    return DataLoader(
        images,
        batch_size=work.options.batch_size,
        sampler=RandomSampler(images),
        num_workers=min(16, work.options.workers),
        pin_memory=True,
    )


def compute_accuracies(output, target, ranks):
    """Compute the top-k accuracy in percent for each k in ``ranks``."""
    with torch.no_grad():
        predictions = output.topk(max(ranks), 1).indices.t()
        correct = predictions.eq(target[None])
        return [correct[:rank].flatten().sum(dtype=torch.float32) * (100.0 / len(target)) for rank in ranks]


def train_epoch(work, model, criterion, optimizer, loader, scaler):
    """Train for an epoch, or until all windows are timed; return whether they are."""
    model.train()
    meters = collections.defaultdict(Meter)
    meters["lr"], meters["img/s"] = Meter(1), Meter(10)
    batch_start = time.time()
    for step, (image, target) in enumerate(loader):
        meters["data"].add(time.time() - batch_start)
        step_start = time.time()
        image, target = image.to(DEVICE), target.to(DEVICE)
        dtype = torch.float16 if CUDA else torch.bfloat16
        with torch.autocast(DEVICE, dtype) if work.mixed else contextlib.nullcontext():
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
        top1, top5 = compute_accuracies(output, target, (1, 5))
        meters["loss"].add(loss.item())
        meters["lr"].add(optimizer.param_groups[0]["lr"])
        meters["acc1"].add(top1.item(), len(image))
        meters["acc5"].add(top5.item(), len(image))
        meters["img/s"].add(len(image) / (time.time() - step_start))
        if work.clock.step(loss, len(image)):
            return True
        meters["time"].add(time.time() - batch_start)
        if step % PRINT_INTERVAL == 0:
            print(f"[{step}/{len(loader)}]", "  ".join(f"{name}: {meter}" for name, meter in meters.items()))
        batch_start = time.time()
    return False


def main():
    """Train until all windows are timed."""
    work = Work()
    torch.backends.cudnn.benchmark = True
    model = work.network().to(DEVICE)
    if work.compile:
        model = torch.compile(model)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.0)
    optimizer = work.optimizer(model.parameters())
    scaler = torch.amp.GradScaler("cuda") if work.mixed and CUDA else None
    loader = build_loader(work)
    work.clock.start()
    while not train_epoch(work, model, criterion, optimizer, loader, scaler):
        pass
    precision = ("float16" if CUDA else "bfloat16") if work.mixed else "float32"
    work.clock.report(precision=precision, workers=loader.num_workers)


if __name__ == "__main__":
    main()
