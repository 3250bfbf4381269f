"""Models from scratch: text, tokens, base, chat model, evaluation, report and chat."""
