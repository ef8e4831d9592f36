"""The tools that `benchmarks.training` measures this program against, each in a process of its own.

None of them imports LoRA Studio, so that an environment of their own can run them.
"""
