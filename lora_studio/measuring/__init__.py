"""How good an adapter is, in numbers: on rows it never learned from, and on what it may forget."""
