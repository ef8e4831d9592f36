"""Where a base model comes from, what it is made of, and how it is loaded."""
