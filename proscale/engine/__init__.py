"""Training and evaluation: optimiser, schedule, training step, trainer, processes."""
