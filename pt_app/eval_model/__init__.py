"""The judge itself: recipes, data, prompts, training step, adapters, scoring, evaluation."""

import logging

# Where it is installed, peft imports bitsandbytes 0.50, which then regrets on every machine
# that it could not fetch a kernel from the hub. None is wanted.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
