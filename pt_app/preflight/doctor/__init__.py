"""Check that this machine computes correctly and has what a run needs (`judge doctor`)."""
