"""What a judge's numbers are worth: intervals, baselines, comparisons. Works on any verdicts."""
