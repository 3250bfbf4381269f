"""Fine-tune a small language model into a judge, and prove how good it is."""

__version__ = "0.1.0"
