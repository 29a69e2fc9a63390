"""Entry point of ``python -m fukami`` and ``torchrun -m fukami``."""

from fukami.cli.main import main

if __name__ == "__main__":
    main()
