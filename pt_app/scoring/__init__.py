"""Reading verdicts from a model: the verdict trie, prefix trees, `JudgeScorer`, precision."""
