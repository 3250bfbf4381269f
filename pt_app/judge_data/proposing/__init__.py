"""`judge init`: from a file that nobody has seen to the commands that make it a dataset."""
