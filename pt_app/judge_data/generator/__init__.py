"""Judge data whose labels follow from known errors: a grammar or a corpus, corrupted on purpose."""
