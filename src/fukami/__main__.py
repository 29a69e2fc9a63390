"""``python -m fukami`` is ``fukami``; ``torchrun -m fukami`` starts several."""

from fukami.cli.main import main

if __name__ == "__main__":
    main()
