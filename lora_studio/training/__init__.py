"""The worker process: from a recipe to a trained adapter."""
