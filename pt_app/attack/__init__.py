"""`judge attack`: what happens to a judge's verdicts when a candidate plays against it."""
