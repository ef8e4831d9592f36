"""Recipes that are kept: saved under a name, compared, written as a command, brought up to date."""
