"""`nvidia-smi` of a played box, as far as tests/gpu asks it: through the same played NVML."""

import sys

import pynvml


def main() -> None:
    """Print what `--query-gpu` asks for."""
    query = next(each for each in sys.argv if each.startswith("--query-gpu="))
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    known = {
        "name": pynvml.nvmlDeviceGetName(handle),
        "driver_version": pynvml.nvmlSystemGetDriverVersion(),
        "memory.total": f"{memory.total >> 20} MiB",
        "memory.used": f"{memory.used >> 20}",
    }
    print(", ".join(known[each] for each in query.partition("=")[2].split(",")))


if __name__ == "__main__":
    main()
