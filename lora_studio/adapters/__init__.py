"""PEFT folders: read and checked, looked into, made smaller, taken away."""
