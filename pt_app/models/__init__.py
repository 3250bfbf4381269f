"""Base models, adapters and platforms: loading them, which one it is, and how they compute."""
