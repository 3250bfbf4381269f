"""The tiny base that comes with the package (`--model tiny`), and how it is made."""
