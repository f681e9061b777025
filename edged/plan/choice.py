"""Which engine runs one model, with which files, settings and memory: the reasons told.

Model files' headers are read; nothing else of the box is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from edged.config import Config, LlamaCppOptions, Model, Source
from edged.config.values import format_bytes
from edged.errors import NotFetched, StoreError
from edged.hardware import Cpu, Hardware
from edged.plan import beside, keeping
from edged.plan import context as contexts
from edged.plan import kind as kinds
from edged.plan.adapters import AdapterChoice, AdapterPlan
from edged.plan.estimate import MemoryEstimate, cells_of, estimate, residents_of
from edged.plan.lmdeploy import LmdeployChoice
from edged.plan.model import ModelFile, ModelPlan, budget_bytes
from edged.plan.vram import Room
from edged.protocol import Kind, Launch, LlamaCppLaunch, Pooling, PrefixCache
from edged.store import folders, lock, parts
from edged.store.gguf import GgufHeader, read_header
from edged.store.projector import read_projector
from edged.store.source import is_offline, projector_beside, resolve

_SHORTEST_CONTEXT = 512  # of an encoder whose default does not fit


_Header = TypeVar("_Header")


class _RefusedError(Exception):
    """This engine cannot run the model; the message says why."""


class Choice:
    """Goes through the engines for one model, keeping the reasons."""

    def __init__(self, model: Model, config: Config, hardware: Hardware, room: Room) -> None:
        """`room`: what is left of the GPUs; an engine that takes some of it says so there."""
        self._room = room
        self._model = model
        self._beside = Path(config.path).parent
        self._hardware = hardware
        self._budget = budget_bytes(config, hardware)
        self._store = folders.models(config.store.folder, config.path)
        self._offline = is_offline(config.store)
        self._prefixes_bytes = config.server.prefix_cache_max_bytes
        self._reasons: list[str] = []
        self._digests: dict[str, str] = {}

    def plan(self) -> ModelPlan:
        """Return the first engine that can, or a refusal with all reasons."""
        model = self._model
        if model.upstream:
            reason = f"requests are passed on to {model.upstream}"
            return ModelPlan(model=model, engine="upstream", reasons=(reason,))
        refusals: list[str] = []
        if model.safetensors and model.backend in ("auto", "lmdeploy"):
            try:
                return self._lmdeploy(model.safetensors)
            except kinds.UnfitError as error:
                refusals.append(f"LMDeploy cannot run it: {error}")
        if model.gguf and model.backend in ("auto", "llamacpp"):
            try:
                return self._llamacpp(model.gguf, refusals)
            except _RefusedError as error:
                refusals.append(str(error))
        elif not refusals or model.backend == "auto":
            refusals.append("llama.cpp needs gguf = …")
        return ModelPlan(
            model=model,
            reasons=(*refusals, *self._reasons),
            refusal="; ".join(refusals),
        )

    def _lmdeploy(self, source: Source) -> ModelPlan:
        choice = LmdeployChoice(
            self._model,
            self._hardware,
            self._room,
            beside=self._beside,
            store=self._store,
            offline=self._offline,
            budget=self._budget,
        )
        return choice.plan(source)

    # llama.cpp

    def _llamacpp(self, gguf: Source, before: list[str]) -> ModelPlan:
        if self._hardware.engines.llamacpp is None:
            raise _RefusedError(
                "llama-cpp-python is not installed: pip install 'llama-cpp-python>=0.3.36,<0.4'"
            )
        if self._model.require == "gpu":
            why = "this version runs llama.cpp on the CPU only"
            if not self._hardware.gpus:
                why = "there is no GPU that can be used (`edged doctor` says what it sees)"
            raise _RefusedError(f'require = "gpu", and {why}')
        if missing := self._missing(gguf):
            names = ", ".join(map(str, missing))
            return ModelPlan(
                model=self._model,
                engine="llamacpp",
                reasons=(*before, f"is to be fetched first: {names}"),
                missing=missing,
            )
        path, file_id, header = self._file(gguf, read_header)
        kind, pooling = self._kind(header)
        wanted, parallel = self._context(header), self._model.parallel
        options = self._kept(header, wanted)
        context, memory = self._fitting(header, options, wanted, pooling)
        self._check_use(header, kind)
        settings = self._settings(options, self._hardware.cpu, pooling)
        if kind == "chat":
            settings = replace(settings, prefix_cache=self._prefix_cache(options))
        settings = replace(settings, residents=residents_of(header, parallel, options))
        settings, memory = self._with_projector(settings, memory, kind)
        settings, memory = self._with_draft(settings, memory, header, context)
        self._check_room(memory, context)
        adapters = self._adapters(path, header, kind, memory)
        memory = replace(memory, adapters_bytes=sum(each.memory_bytes for each in adapters))
        launch = Launch(
            model=self._model.name,
            engine="llamacpp",
            path=str(path),
            file_id=file_id,
            output_format=self._model.output_format,
            context=context,
            parallel=parallel,
            pool=cells_of(context, parallel, options, pooling),
            kind=kind,
            llamacpp=settings,
        )
        return ModelPlan(
            model=self._model,
            engine="llamacpp",
            launch=launch,
            memory=memory,
            reasons=(*before, self._why_llamacpp(memory), *self._reasons),
            adapters=adapters,
            missing=tuple(each.missing for each in adapters if each.missing is not None),
            file=ModelFile(
                path=str(path),
                bytes=header.file_bytes,
                quantisation=header.quantisation,
                trained_context=header.context_length,
                chat_template=header.chat_template,
                architecture=header.architecture,
            ),
            digests=self._digests,
        )

    def _missing(self, gguf: Source) -> tuple[Source, ...]:
        """Return the sources that must be fetched before the model can run."""
        options = self._model.llamacpp
        missing = []
        for source in (gguf, options.mmproj, options.draft):
            if source is None:
                continue
            try:
                resolve(source, self._beside, store=self._store)
            except NotFetched as error:
                if self._offline:
                    raise _RefusedError(f"{error.message}, and edged is offline") from None
                missing.append(source)
            except StoreError as error:
                raise _RefusedError(error.message) from None
        return tuple(missing)

    def _file(self, source: Source, read: Callable[[Path], _Header]) -> tuple[Path, str, _Header]:
        """Return path, identity and header of a file."""
        try:
            path = resolve(source, self._beside, store=self._store)
        except StoreError as error:
            raise _RefusedError(error.message) from None
        try:
            header = read(path)
            if (digest := parts.digest(path, lock.files(self._store))) is not None:
                self._digests[str(path)] = digest
            return path, parts.identity(path), header
        except StoreError as error:
            raise _RefusedError(f"{path} {error.message}") from None
        except OSError as error:
            raise _RefusedError(f"{path} cannot be read: {error.strerror}") from None

    def _context(self, header: GgufHeader) -> int:
        """Return the context in force."""
        try:
            tokens, lowered = contexts.in_force(self._model, header.context_length)
        except kinds.UnfitError as error:
            raise _RefusedError(str(error)) from None
        if lowered is not None:
            self._reasons.append(lowered)
        return tokens

    def _kind(self, header: GgufHeader) -> tuple[Kind, Pooling | None]:
        """Return what the model serves, and choose what nobody said accordingly."""
        model = self._model
        try:
            kind, pooling = kinds.kind_of(model, header)
        except kinds.UnfitError as error:
            raise _RefusedError(str(error)) from None
        if kind != "chat":
            if model.parallel_is_default:
                self._model = replace(model, parallel=kinds.PARALLEL)
            if header.pooling and header.pooling != pooling:
                self._reasons.append(f"pooling is {pooling}, though its file says {header.pooling}")
        return kind, pooling

    def _kept(self, header: GgufHeader, context: int) -> LlamaCppOptions:
        """Return the model's options with how its context is kept."""
        said = self._model.llamacpp
        unfit = keeping.unfit_kv_type(header, said)
        if unfit is not None:
            raise _RefusedError(f"llamacpp.{unfit}")
        options, reason = keeping.with_window(
            header, said, context=context, parallel=self._model.parallel, budget=self._budget
        )
        if reason is not None:
            self._reasons.append(reason)
        return options

    def _fitting(
        self, header: GgufHeader, options: LlamaCppOptions, context: int, pooling: Pooling | None
    ) -> tuple[int, MemoryEstimate]:
        """Return context and memory; a default context of an encoder gives way to the memory.

        llama.cpp keeps a row of logits for every token of an encoder's input, though nobody reads
        them: 8192 tokens of a vocabulary of 250,000 are 8 GiB.
        """
        model, wanted = self._model, context
        while True:
            memory = estimate(
                header,
                context=context,
                parallel=model.parallel,
                options=options,
                pooling=pooling,
            )
            small_enough = memory.total_bytes <= self._budget or context <= _SHORTEST_CONTEXT
            if small_enough or pooling is None or not model.context_is_default:
                break
            context = max(context // 2, _SHORTEST_CONTEXT)
        if context < wanted:
            self._reasons.append(f"context is {context}, not {wanted}: more does not fit in memory")
        return context, memory

    def _check_use(self, header: GgufHeader, kind: Kind) -> None:
        strangers = [
            token for token in self._model.sampling.logit_bias or {} if token >= header.n_vocab
        ]
        if strangers:
            raise _RefusedError(
                f"sampling.logit_bias names token {strangers[0]}, "
                f"and the vocabulary has {header.n_vocab} tokens"
            )
        if kind == "chat" and not header.chat_template:
            self._reasons.append("the file brings no chat template")

    def _check_room(self, memory: MemoryEstimate, context: int) -> None:
        if memory.total_bytes > self._budget:
            raise _RefusedError(
                f"needs {format_bytes(memory.total_bytes)} "
                f"(weights {format_bytes(memory.weights_bytes)}, "
                f"KV {format_bytes(memory.kv_bytes)} for {self._model.parallel} × {context} tokens,"  # noqa: RUF001
                f" compute {format_bytes(memory.compute_bytes)}, "
                f"process {format_bytes(memory.process_bytes)}), "
                f"the box allows {format_bytes(self._budget)}: "
                "lower context or parallel, or take a smaller quantisation"
            )

    def _settings(
        self, options: LlamaCppOptions, cpu: Cpu, pooling: Pooling | None
    ) -> LlamaCppLaunch:
        # On a box of one or two cores every core counts; elsewhere one stays for the daemon and
        # the rest of the box, since ggml's threads wait for the slowest at every barrier.
        cores = cpu.usable_cores
        threads = options.threads or (cores if cores <= 2 else cores - 1)  # noqa: PLR2004
        threads_batch = options.threads_batch or options.threads or cores
        if max(threads, threads_batch) > cpu.usable_cpus:
            self._reasons.append(
                f"llamacpp.threads asks for more than the {cpu.usable_cpus} CPUs of the box"
            )
        if options.gpu_layers:
            self._reasons.append(
                f"llamacpp.gpu_layers = {options.gpu_layers} has no effect: "
                "this version runs llama.cpp on the CPU only"
            )
        return LlamaCppLaunch(
            threads=threads,
            threads_batch=threads_batch,
            gpu_layers=0,
            kv_type=options.kv_type,
            flash_attention=options.flash_attention,
            batch=options.batch,
            full_window=options.full_window is not False,
            pooling=pooling,
            speculation=options.speculation != "off",
        )

    def _prefix_cache(self, options: LlamaCppOptions) -> PrefixCache:
        return PrefixCache(
            bytes=min(options.prefix_cache_bytes, self._prefixes_bytes),
            total=self._prefixes_bytes,
        )

    def _with_projector(
        self, settings: LlamaCppLaunch, memory: MemoryEstimate, kind: Kind
    ) -> tuple[LlamaCppLaunch, MemoryEstimate]:
        """Return both with the model's projector, if it has one."""
        source = self._model.llamacpp.mmproj
        if source is None:
            gguf = self._model.gguf
            path = projector_beside(gguf, self._store) if gguf and kind == "chat" else None
            if path is not None:
                settings, memory, reason = beside.take(path, settings, memory, self._budget)
                self._reasons.append(reason)
            return settings, memory
        if kind != "chat":
            raise _RefusedError("llamacpp.mmproj is for chat models: remove it")
        path, file_id, projector = self._file(source, read_projector)
        settings = replace(settings, mmproj=str(path), mmproj_id=file_id, media=projector.media)
        return settings, beside.plus(memory, projector)

    def _with_draft(
        self, settings: LlamaCppLaunch, memory: MemoryEstimate, header: GgufHeader, context: int
    ) -> tuple[LlamaCppLaunch, MemoryEstimate]:
        """Return both with the small model that guesses for this one, if it has one."""
        source = self._model.llamacpp.draft
        if source is None:
            return settings, memory
        path, file_id, small = self._file(source, read_header)
        if settings.pooling or small.is_encoder:
            raise _RefusedError("llamacpp.draft is for chat models, and names one: remove it")
        if small.recurrent_layers or header.recurrent_layers:
            raise _RefusedError(
                "llamacpp.draft: guesses are taken back, which models with recurrent layers cannot"
            )
        if small.n_vocab != header.n_vocab:
            raise _RefusedError(
                f"llamacpp.draft has another vocabulary: {small.n_vocab} tokens, the model has "
                f"{header.n_vocab}; take a smaller model of the same family"
            )
        extra = estimate(
            small,
            context=context,
            parallel=self._model.parallel,
            options=self._model.llamacpp,
        )
        return (
            replace(settings, draft=str(path), draft_id=file_id),
            replace(
                memory,
                weights_bytes=memory.weights_bytes + extra.weights_bytes,
                kv_bytes=memory.kv_bytes + extra.kv_bytes,
                compute_bytes=memory.compute_bytes + extra.compute_bytes,
            ),
        )

    def _adapters(
        self, path: Path, header: GgufHeader, kind: Kind, memory: MemoryEstimate
    ) -> tuple[AdapterPlan, ...]:
        options = self._model.llamacpp
        choice = AdapterChoice(
            path,
            header,
            kind,
            beside=self._beside,
            store=self._store,
            batch=options.batch,
            offline=self._offline,
        )
        try:
            found = choice.plan(options.lora, self._budget - memory.total_bytes)
        except OSError as error:
            raise _RefusedError(f"{path} cannot be read: {error.strerror}") from None
        for adapter in found:
            if adapter.refusal:
                self._reasons.append(f"adapter {adapter.name!r} cannot be used: {adapter.refusal}")
        return found

    def _why_llamacpp(self, memory: MemoryEstimate) -> str:
        return (
            f"llama.cpp on the CPU: about {format_bytes(memory.total_bytes)} "
            f"of the {format_bytes(self._budget)} for models"
        )
