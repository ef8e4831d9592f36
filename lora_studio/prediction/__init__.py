"""What a run will take before it starts: memory by parts, and time."""
