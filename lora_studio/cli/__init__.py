"""The command line, thin over the same use cases as the page."""
