"""What `scripts/vast.py` is made of: the market, the price of a run, the host, the launch."""
