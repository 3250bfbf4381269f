"""Does this machine compute right, and is what a run needs there (`judge doctor`)."""
