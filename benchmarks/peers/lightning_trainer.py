"""Lightning's Trainer with the speed settings of its documentation: mixed precision, ``benchmark``, workers.

Logger, checkpoints, progress bar and model summary are off, so that it only trains.
"""

import lightning
import torch
from work import Work


class Classifier(lightning.LightningModule):
    """Network with loss and optimizer."""

    def __init__(self, work):
        super().__init__()
        self.network = work.network()
        self.make_optimizer = work.optimizer

    def training_step(self, batch, index):
        """Compute the loss of a batch."""
        x, y = batch
        return torch.nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        """Create the optimizer."""
        return self.make_optimizer(self.parameters())


class Timer(lightning.Callback):
    """Callback that times the steps."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_start(self, trainer, module):
        """Start the clock before the first batch."""
        self.clock.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        """Count a step."""
        self.clock.step(outputs["loss"], len(batch[0]))


def main():
    """Train until all windows are timed."""
    work = Work()
    loader = work.loader()
    module = Classifier(work)
    trainer = lightning.Trainer(
        max_steps=work.clock.steps * work.clock.windows,
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if work.mixed else "32-true",
        benchmark=True,
        callbacks=[Timer(work.clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(torch.compile(module) if work.compile else module, loader)
    work.clock.report(precision=trainer.precision, workers=loader.num_workers, lightning=lightning.__version__)


if __name__ == "__main__":
    main()
