"""Check and forecast a run before it starts: doctor, estimate, prefetch and bundle."""
