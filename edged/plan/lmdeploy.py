"""Whether LMDeploy runs a model, on which GPUs and in how much of their memory.

Decided from the hardware, `config.json` and the headers of the weights, before anything starts.
What cannot be raises `UnfitError` with the reason; the caller then tries the next engine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from edged.config import Model, Source
from edged.config.values import format_bytes
from edged.errors import NotFetched, StoreError
from edged.hardware import Hardware
from edged.hardware.gpu import Gpu
from edged.plan import context, known_bad, turbomind, vram
from edged.plan.estimate import MemoryEstimate
from edged.plan.kind import UnfitError
from edged.plan.model import ModelFile, ModelPlan
from edged.plan.turbomind import Shape
from edged.plan.vram import Room, Vram
from edged.protocol import Launch, LmdeployLaunch
from edged.store.safetensors import Weights, read_folder
from edged.store.source import resolve

# Main memory of a worker: Python with torch, CUDA's context, staging of weights. Not measured yet.
_HOST_BYTES = 3 << 30
_PYTORCH_LEAST = (8, 0)  # Triton's
_MACHINE = "x86_64"  # the wheels'
#: Defaults of a model that the engine has nothing for; a value that switches it off is fine.
_NOT_HONOURED = {
    "typical_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "dry_multiplier": 0.0,
    "xtc_probability": 0.0,
}


class LmdeployChoice:
    """One model; `room` is what the models before it have left of the GPUs."""

    def __init__(
        self,
        model: Model,
        hardware: Hardware,
        room: Room,
        *,
        beside: Path,
        store: Path,
        offline: bool,
        budget: int,
    ) -> None:
        self._model = model
        self._options = model.lmdeploy
        self._hardware = hardware
        self._room = room
        self._beside = beside
        self._store = store
        self._offline = offline
        self._budget = budget
        self._reasons: list[str] = []

    def plan(self, source: Source) -> ModelPlan:
        """Return the plan and take its share of the GPUs; raises UnfitError with the reason."""
        gpus = self._gpus()
        python = self._python()
        self._check_use()
        try:
            folder = resolve(source, self._beside, "safetensors", store=self._store)
        except NotFetched as error:
            if self._offline:
                raise UnfitError(f"{error.message}, and edged is offline") from None
            reason = f"is to be fetched first: {source}"
            return ModelPlan(
                model=self._model, engine="lmdeploy", reasons=(reason,), missing=(source,)
            )
        except StoreError as error:
            raise UnfitError(error.message) from None
        return self._place(folder, self._read(folder), gpus, python)

    # ── the box ──

    def _gpus(self) -> list[Gpu]:
        if self._hardware.cpu.architecture != _MACHINE:
            raise UnfitError(f"there are no wheels of it for {self._hardware.cpu.architecture}")
        gpus = [gpu for gpu in self._hardware.gpus if gpu.via == "nvml"]
        if not gpus:
            raise UnfitError("there is no NVIDIA GPU that can be used")
        able = [gpu for gpu in gpus if turbomind.runs_on(gpu.compute_capability)]
        if not able:
            best = max(gpus, key=lambda gpu: gpu.compute_capability or (0, 0))
            major, minor = best.compute_capability or (0, 0)
            raise UnfitError(
                f"it has machine code for compute capability 7.0, 7.5, 8.x, 9.0, 10.x and 12.x, "
                f"{best.name} has {major}.{minor}"
            )
        driver = able[0].driver or ""
        number = driver.partition(".")[0]
        if number.isdecimal() and int(number) < turbomind.LEAST_DRIVER:
            raise UnfitError(
                f"the NVIDIA driver is {driver}, it needs {turbomind.LEAST_DRIVER} or newer"
            )
        return able

    def _python(self) -> str:
        engines = self._hardware.engines
        if engines.lmdeploy is None or engines.lmdeploy_python is None:
            raise UnfitError("it is not installed: `edged setup-cuda` does that")
        return engines.lmdeploy_python

    def _check_use(self) -> None:
        model = self._model
        if model.kind not in ("auto", "chat"):
            raise UnfitError(f'it serves chat models, and kind = "{model.kind}"')
        if model.llamacpp.lora:
            raise UnfitError("adapters (llamacpp.lora) are for llama.cpp only")
        for name, off in _NOT_HONOURED.items():
            if (getattr(model.sampling, name) or off) != off:
                raise UnfitError(f"sampling.{name} is nothing that it can honour: remove it")
        if self._hardware.memory.limit_bytes and self._budget < _HOST_BYTES:
            raise UnfitError(
                f"its worker needs {format_bytes(_HOST_BYTES)} of main memory, "
                f"the box allows {format_bytes(self._budget)}"
            )

    @staticmethod
    def _read(folder: Path) -> Weights:
        try:
            return read_folder(folder)
        except StoreError as error:
            raise UnfitError(f"{folder} {error.message}") from None
        except OSError as error:
            raise UnfitError(f"{folder} cannot be read: {error.strerror}") from None

    # ── the model on the box ──

    def _place(self, folder: Path, weights: Weights, gpus: list[Gpu], python: str) -> ModelPlan:
        backend, able = self._backend(weights, gpus)
        if not weights.tokenizer:  # older models bring tokenizer.model, or code of their own
            raise UnfitError(f"{folder} has no tokenizer.json, the only kind that edged reads here")
        shape = turbomind.shape_of(weights.config)
        tokens, lowered = context.in_force(self._model, shape.trained_context)
        if lowered is not None:
            self._reasons.append(lowered)
        images = self._reads_images(weights, backend)
        chosen, need = self._room_for(shape, weights, able, tokens, images=images)
        self._room.take(chosen, need.total_bytes, self._model.name)
        kv_bits = self._options.quant_policy or 0
        met = known_bad.of(tp=len(chosen), kv_bits=kv_bits, reads_images=images)
        settings = LmdeployLaunch(
            python=python,
            devices=tuple(gpu.index for gpu in chosen),
            weights_bytes=need.weights_bytes + need.compute_bytes,
            cache_bytes=need.cache_bytes,
            backend=backend,
            dtype=self._dtype(weights, chosen),
            kv_bits=kv_bits,
            prefixes=known_bad.PREFIXES_WITH_SMALL_KV not in met,
            grammars=known_bad.GRAMMARS_ON_SEVERAL_GPUS not in met,
            images=images,
        )
        if not weights.chat_template:
            self._reasons.append("the folder brings no chat template")
        self._reasons += [row.reason for row in met]
        return ModelPlan(
            model=self._model,
            engine="lmdeploy",
            launch=Launch(
                model=self._model.name,
                engine="lmdeploy",
                path=str(folder),
                file_id=weights.file_id,
                output_format=self._model.output_format,
                context=tokens,
                parallel=self._model.parallel,
                pool=tokens * self._model.parallel,
                lmdeploy=settings,
            ),
            memory=MemoryEstimate(0, 0, 0, process_bytes=_HOST_BYTES),
            reasons=(self._why(settings, need, chosen), *self._reasons),
            file=ModelFile(
                path=str(folder),
                bytes=weights.bytes,
                quantisation=turbomind.quantisation_of(weights.config),
                trained_context=shape.trained_context,
                chat_template=weights.chat_template,
                architecture=weights.architecture,
            ),
        )

    def _backend(
        self, weights: Weights, gpus: list[Gpu]
    ) -> tuple[Literal["turbomind", "pytorch"], list[Gpu]]:
        """Return which of LMDeploy's engines runs the model, and the GPUs that it can use."""
        able, why = _fit(gpus, lambda capability: self._check(weights, capability))
        if able:
            return "turbomind", able
        if not self._options.pytorch:
            raise why
        newer = [gpu for gpu in gpus if (gpu.compute_capability or (0, 0)) >= _PYTORCH_LEAST]
        if not newer:
            raise UnfitError(f"{why}; LMDeploy's PyTorch engine needs compute capability 8.0")
        self._reasons.append(f"{why}; lmdeploy.pytorch allows LMDeploy's PyTorch engine instead")
        return "pytorch", newer

    def _check(self, weights: Weights, capability: tuple[int, int]) -> None:
        kv_bits = self._options.quant_policy or 0
        turbomind.check(weights.config, capability=capability, kv_bits=kv_bits)

    @staticmethod
    def _reads_images(weights: Weights, backend: str) -> bool:
        family = turbomind.FAMILIES.get(weights.architecture)
        return backend == "turbomind" and bool(family and family.reads_images)

    def _room_for(
        self, shape: Shape, weights: Weights, gpus: list[Gpu], tokens: int, *, images: bool
    ) -> tuple[tuple[Gpu, ...], Vram]:
        """Return GPUs with room, as few as will do, and what the model takes of each."""
        said = self._options.tp
        ways = vram.ways_to_share(shape, 1 if images and said is None else len(gpus), said)
        need, tp = None, 1
        for tp in ways:
            need = vram.need(
                shape,
                weights.bytes,
                tokens=tokens * self._model.parallel,
                parallel=self._model.parallel,
                kv_bits=self._options.quant_policy or 0,
                tp=tp,
            )
            chosen = self._room.find(gpus, need.total_bytes, tp)
            if chosen is not None:
                return chosen, self._with_said_cache(need, chosen)
        assert need is not None, "one GPU is always a way"
        why = self._room.why_not(gpus, need.total_bytes, tp)
        if images and said is None and len(gpus) > 1:
            why += f"; {known_bad.IMAGES_ON_SEVERAL_GPUS.reason}"
        raise UnfitError(
            f"{why} (weights {format_bytes(need.weights_bytes)}, KV "
            f"{format_bytes(need.cache_bytes)} for {self._model.parallel} × {tokens} tokens, "  # noqa: RUF001
            f"the rest {format_bytes(need.compute_bytes)}): lower context or parallel, "
            "or take a smaller quantisation"
        )

    def _with_said_cache(self, need: Vram, gpus: tuple[Gpu, ...]) -> Vram:
        """Return what is taken where models.toml names a share of the free memory for the KV."""
        share = self._options.cache_max_entry_count
        if share is None:
            return need
        free = self._room.left(gpus) - need.weights_bytes - need.compute_bytes
        taken = int(free * share)
        if taken < need.cache_bytes:
            raise UnfitError(
                f"lmdeploy.cache_max_entry_count = {share} of {format_bytes(free)} is too little "
                f"for the {format_bytes(need.cache_bytes)} of KV that context and parallel ask for"
            )
        return replace(need, cache_bytes=taken)

    @staticmethod
    def _dtype(weights: Weights, gpus: tuple[Gpu, ...]) -> Literal["float16", "bfloat16"]:
        return turbomind.dtype_on(weights.config, gpus[0].compute_capability or (0, 0))

    @staticmethod
    def _why(settings: LmdeployLaunch, need: Vram, gpus: tuple[Gpu, ...]) -> str:
        engine = "TurboMind" if settings.backend == "turbomind" else "PyTorch engine"
        numbers = " and ".join(str(gpu.index) for gpu in gpus)
        share = need.cache_bytes / max(1, gpus[0].memory_bytes - settings.weights_bytes)
        each = " each" if len(gpus) > 1 else ""
        return (
            f"LMDeploy's {engine} in {settings.dtype} on GPU {numbers} ({gpus[0].name}): about "
            f"{format_bytes(need.total_bytes)} of {format_bytes(gpus[0].memory_bytes)}{each}, "
            f"KV {format_bytes(need.cache_bytes)} (cache_max_entry_count about {share:.2f})"
        )


def _fit(gpus: list[Gpu], check: Callable[[tuple[int, int]], None]) -> tuple[list[Gpu], UnfitError]:
    """Return the GPUs that pass, and why one did not."""
    able: list[Gpu] = []
    why = UnfitError("")
    for gpu in gpus:
        try:
            check(gpu.compute_capability or (0, 0))
            able.append(gpu)
        except UnfitError as error:
            why = error
    return able, why
