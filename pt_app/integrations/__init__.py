"""A judge in process inside of other evaluators: inspect_ai, Weave, DeepEval."""
