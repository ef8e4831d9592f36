"""Answers from the base and its adapters, side by side."""
