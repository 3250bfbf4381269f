"""What a run will cost, before it begins: memory, time, disk, dollars."""
