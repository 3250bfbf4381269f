"""Models from scratch: how the tiny base of `--model tiny` is made."""
