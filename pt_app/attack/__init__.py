"""`judge attack`: what a candidate that tries to deceive the judge does to its verdicts."""
