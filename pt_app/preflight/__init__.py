"""What is checked and forecast before a run: doctor, estimate, prefetch and bundle."""
