"""W&B, Weave and TensorBoard around a run: online, offline or off."""
