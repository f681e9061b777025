"""Level D: the plan's rules, pure JSON, are those of the wheel."""

import ast
from pathlib import Path
from typing import Any

import lmdeploy
from lmdeploy.archs import check_vl_llm
from lmdeploy.turbomind.supported_models import SUPPORTED_ARCHS

from edged.plan import turbomind


def test_architectures_are_the_wheels() -> None:
    assert set(turbomind.FAMILIES) == set(SUPPORTED_ARCHS)


def test_families_with_images_are_the_wheels() -> None:
    for name, family in turbomind.FAMILIES.items():
        assert family.reads_images == check_vl_llm("turbomind", {"architectures": [name]}), name


def constant(name: str) -> Any:
    """Return a constant of the converter, which cannot be imported without CUDA."""
    source = Path(lmdeploy.__file__).parent / "turbomind/converter.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            sets = ast.unparse(node.value).replace("frozenset(", "(")
            return ast.literal_eval(sets)
    raise AssertionError(f"the converter has no {name} any more")


def test_group_sizes_are_the_wheels() -> None:
    theirs = constant("_SUPPORTED_GROUP_SIZES")
    for method, sizes in turbomind._GROUPS.items():
        assert set(theirs[method]) == set(sizes)
    assert set(theirs) == {*turbomind._GROUPS, "mxfp4"}


def test_converter_still_refuses_the_same() -> None:
    source = (Path(lmdeploy.__file__).parent / "turbomind/converter.py").read_text()
    for rule in (
        "version == 'gemm'",
        "not quant_config.get('desc_act', False)",
        "_format == 'pack-quantized'",
        "_num_bits == 4 and _type == 'int'",
    ):
        assert rule in source
