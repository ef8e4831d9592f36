"""Whatever text a person has, turned into rows of token ids with a loss mask."""
