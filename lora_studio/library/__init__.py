"""What was made and what came from elsewhere, kept: names, one table, notes, trash, disk use."""
