"""Plain training loop of DeepConvNet on MNIST as a baseline: DataLoader, batch size 100, Adam 1e-3, float32.

    python benchmarks/common/plain_loop.py [--epochs 20] [--until 0.9935] [--seed 0]

Prints a JSON line per epoch: test accuracy, seconds since the start of the process, and since the first batch.
"""

import argparse
import json
import time

START = time.monotonic()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from fukami.data import digits, mnist  # noqa: E402


def build_network():
    """Build DeepConvNet from torch layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4 * 4, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10),
    )  # fmt: skip


def read_digits():
    """Load scikit-learn's digits, every fifth one for testing; for a test without MNIST."""
    images, labels = digits.load_digits()
    test = np.arange(len(labels)) % 5 == 0
    return (images[~test], labels[~test]), (images[test], labels[test])


def main():
    """Train and evaluate until the target accuracy or the number of epochs is reached."""
    options = argparse.ArgumentParser()
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--until", type=float, default=1.0)
    options.add_argument("--data", default="mnist", choices=["mnist", "digits"])
    options.add_argument("--seed", type=int, default=0)
    options = options.parse_args()
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test = (
        TensorDataset(torch.from_numpy(x)[:, None].float() / 255, torch.from_numpy(y).long())
        for x, y in (mnist.load_mnist() if options.data == "mnist" else read_digits())
    )
    model = build_network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    loop_start = time.monotonic()
    for epoch in range(1, options.epochs + 1):
        model.train()
        for x, y in DataLoader(train, batch_size=100, shuffle=True):
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        num_correct = 0
        with torch.no_grad():
            for x, y in DataLoader(test, batch_size=100):
                num_correct += (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
        accuracy = num_correct / len(test)
        now = time.monotonic()
        line = {"epoch": epoch, "accuracy": accuracy, "seconds": now - START, "seconds_in_loop": now - loop_start}
        print(json.dumps(line), flush=True)
        if accuracy >= options.until:
            break


if __name__ == "__main__":
    main()
