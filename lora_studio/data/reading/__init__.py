"""Files of many kinds, read as streams of records."""
