"""Run a fukami command on few bundled scenes, for benchmarks that only measure time or memory.

python benchmarks/common/few_scenes.py train segnet-vgg16 --epochs 1 --out RUN
"""

import sys

TRAINING, TESTING = 16, 4  # scenes
SENTENCES = 64  # captioned scenes


def run(arguments: list[str]) -> None:
    """Run the command line in this process; it raises SystemExit at its end."""
    from fukami.cli.main import main
    from fukami.data import scenes

    scenes.NUM_TRAIN, scenes.NUM_TEST, scenes.NUM_CAPTIONED = TRAINING, TESTING, SENTENCES
    main(arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
