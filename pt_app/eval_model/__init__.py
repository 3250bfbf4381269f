"""The two recipes, the run that they share, and the evaluation that ends it."""
