"""Forecast what a run costs before it begins: memory, time, disk, dollars."""
