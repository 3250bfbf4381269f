"""The `judge` subcommands: each declares its flags, calls one function and prints."""
