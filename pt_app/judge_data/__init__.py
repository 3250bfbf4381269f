"""Where labels come from: generated, imported, distilled; split and checked for leaks."""
