"""The training loop: arguments, trainer, callbacks and the memory estimate."""
