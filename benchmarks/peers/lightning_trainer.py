"""Lightning's Trainer, with what its documentation recommends for speed: mixed precision, ``benchmark``, workers.

Its logger, its checkpoints, its progress bar and its summary are off, so that it does nothing but train.
"""

import lightning
import torch
from work import Work


class Classifier(lightning.LightningModule):
    """A network, its loss and its optimizer."""

    def __init__(self, work):
        super().__init__()
        self.network = work.network()
        self.make_optimizer = work.optimizer

    def training_step(self, batch, index):
        """The loss of a batch."""
        x, y = batch
        return torch.nn.functional.cross_entropy(self.network(x), y)

    def configure_optimizers(self):
        """One optimizer."""
        return self.make_optimizer(self.parameters())


class Timer(lightning.Callback):
    """The clock."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_start(self, trainer, module):
        """Before the first batch."""
        self.clock.start()

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        """After each step."""
        self.clock.step(outputs["loss"], len(batch[0]))


def main():
    """Train until the clock has its windows."""
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
    work.clock.tell(precision=trainer.precision, workers=loader.num_workers, lightning=lightning.__version__)


if __name__ == "__main__":
    main()
