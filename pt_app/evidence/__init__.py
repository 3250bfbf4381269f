"""The statistics of a judge's verdicts, whoever gave them: intervals, baselines, comparisons."""
