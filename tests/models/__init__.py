"""Models for tests and benchmarks, built from code with fixed seeds, never downloaded.

Each function returns the path of a file that is built on first use and kept in a cache folder
(``EDGED_TEST_CACHE``, else ``$XDG_CACHE_HOME/edged-tests``, else ``~/.cache/edged-tests``):

* ``tiny(trait)`` a random model of 2-3 MB for one architecture trait;
* ``projector(kind)`` a random projector (mmproj) that turns images or sounds into its tokens;
* ``broken(kind)`` a file that an engine must refuse with a clear error;
* ``float_guide()`` edge-guide with weights of float32;
* ``bench_model()`` random weights in the shape of Qwen2.5-0.5B, quantised to Q4_K_M;
* ``llama_cpp_source()`` the unpacked source of the installed llama-cpp-python.

``UnavailableError`` says in one line what is missing; a test that needs the model skips with it.
"""

from tests.models.bench import bench_model
from tests.models.broken import KINDS, broken
from tests.models.cache import UnavailableError, cache_dir
from tests.models.float_guide import float_guide
from tests.models.projector import PROJECTORS, projector
from tests.models.source import llama_cpp_source
from tests.models.tiny import TRAITS, tiny

__all__ = [
    "KINDS",
    "PROJECTORS",
    "TRAITS",
    "UnavailableError",
    "bench_model",
    "broken",
    "cache_dir",
    "float_guide",
    "llama_cpp_source",
    "projector",
    "tiny",
]
