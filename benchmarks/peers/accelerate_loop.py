"""Training loop with Accelerate, following its quick tour: ``prepare`` and ``backward``."""

import accelerate
import torch
from work import Work


def main():
    """Train until all windows are timed."""
    work = Work()
    accelerator = accelerate.Accelerator(
        mixed_precision="bf16" if work.mixed else "no", dynamo_backend="inductor" if work.compile else "no"
    )
    model = work.network()
    model, optimizer, loader = accelerator.prepare(model, work.optimizer(model.parameters()), work.loader())
    criterion = torch.nn.CrossEntropyLoss()
    model.train()
    work.clock.start()
    while True:
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            accelerator.backward(loss)
            optimizer.step()
            if work.clock.step(loss, len(x)):
                precision = "bfloat16" if work.mixed else "float32"
                work.clock.report(precision=precision, workers=loader.num_workers, accelerate=accelerate.__version__)


if __name__ == "__main__":
    main()
