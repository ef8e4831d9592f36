"""What is looked for in the examples before anything is learned from them."""
