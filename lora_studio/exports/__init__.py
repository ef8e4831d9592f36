"""A recipe as a program that runs without this one: a Python script and the rows it trains on."""
