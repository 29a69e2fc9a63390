"""How much is kept for the backward pass with ``--rematerialise``, as a share of what is kept without.

    python benchmarks/memory.py [--batch 4]

Tensors that autograd saves are counted, each storage once, the weights not. Results go to results.csv.
"""

import argparse

import torch
from torch import Tensor

from fukami import models
from fukami.ops.rematerialise import rematerialise
from record import record

SHAPES = {
    "resnet50": (3, 224, 224),
    "vgg16": (3, 224, 224),
    "googlenet": (3, 224, 224),
    "resnet20": (3, 32, 32),
    "deep_convnet": (1, 28, 28),
}


def kept(model: torch.nn.Module, pictures: Tensor) -> int:
    """Bytes that a forward pass keeps."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(pictures)  # which holds what was kept until it is counted
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del output
    return sum(size for place, size in sizes.items() if place not in own)


def main() -> None:
    """Measure every network."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=4)
    batch = options.parse_args().batch
    for name, shape in SHAPES.items():
        model, pictures = getattr(models, name)(10), torch.randn(batch, *shape)
        plain = kept(model, pictures)
        rematerialise(model)
        again = kept(model, pictures)
        command = f"python benchmarks/memory.py --batch {batch}"
        note = f"{plain / 1e6:.1f} MB, {again / 1e6:.1f} MB"
        record(f"rematerialise {name}", "kept for the backward pass, share", again / plain, command=command, note=note)


if __name__ == "__main__":
    main()
