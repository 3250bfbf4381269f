"""What everything stands on: records, verdicts, dataset folders, prompts, metrics, errors."""
