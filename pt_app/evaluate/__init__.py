"""`judge eval`: several judges on the same test rows, prompted models among them."""
