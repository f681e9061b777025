"""The llama.cpp engine: native calls in `runner.py`, decisions in pure modules, one thread."""
