"""The run folder, its events, and the process that trains."""
