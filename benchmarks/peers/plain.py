"""Plain training loop, in float32 or with autocast to bfloat16."""

import contextlib

import torch
from work import DEVICE, Work


def main():
    """Train until all windows are timed."""
    work = Work()
    model = work.network().to(DEVICE)
    if work.compile:
        model = torch.compile(model)
    optimizer = work.optimizer(model.parameters())
    criterion = torch.nn.CrossEntropyLoss()
    loader = work.loader()
    model.train()
    work.clock.start()
    while True:
        for x, y in loader:
            x, y = x.to(DEVICE), y.to(DEVICE)
            optimizer.zero_grad()
            with torch.autocast(DEVICE, torch.bfloat16) if work.mixed else contextlib.nullcontext():
                loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            if work.clock.step(loss, len(x)):
                work.clock.report(precision="bfloat16" if work.mixed else "float32", workers=loader.num_workers)


if __name__ == "__main__":
    main()
