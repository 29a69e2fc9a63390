"""Training, evaluation, checkpoints and loading of any task."""
