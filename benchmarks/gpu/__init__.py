"""The check of a rented machine with a GPU: docs/PERFORMANCE.md says how to run it."""
