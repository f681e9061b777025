"""Benchmarks of edged beside llama.cpp's own servers: same machine, model, threads and settings.

``python -m tests.bench --help`` says how to run them. Nothing here asserts: a shared machine's
figures are read by people. What is kept is a table of medians from interleaved runs.
"""
