"""What a run leaves on disk: checkpoints that are whole or absent, training state, and the identity of a run."""
