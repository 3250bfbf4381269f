"""W&B and Weave around a run: online, offline or off."""
