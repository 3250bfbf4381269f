"""`judge agree`: the whole evidence about anybody's verdicts, from a file that holds them."""
