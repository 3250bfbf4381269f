"""The judge itself: recipes, data, prompts, training step, adapters, scoring, evaluation."""
