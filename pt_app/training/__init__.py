"""The training of a judge: its data, packs, step, checkpoints, validation and processes."""
