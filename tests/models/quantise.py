"""A program: ``quantise.py SOURCE TARGET`` writes a GGUF as Q4_K_M with llama.cpp's quantiser.

A program of its own, because the quantiser prints a line for each tensor and ends the process when
something is wrong.
"""

import sys

import llama_cpp


def main(source: str, target: str) -> int:
    """Quantise the file ``source`` into ``target``; return the quantiser's code."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
