"""What stands behind TurboMind's native module, played in a thread: tokens come from the test.

Everything above it is LMDeploy's own: `turbomind.py`, the native module's objects, its grammars. It
keeps the manners of the native engine: it signals a state only when the one before was consumed,
and says nothing more of a request once its status is no longer 0.
"""

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from lmdeploy.messages import TurbomindEngineConfig
from lmdeploy.tokenizer import Tokenizer
from lmdeploy.turbomind import TurboMind, _tm

FINISH, CANCEL = 7, 8
_MOST_LIKELIHOODS = 1024


class Asked(NamedTuple):
    """What `ModelRequest.forward` was called with."""

    tokens: list[int]
    config: Any  # the native GenerationConfig
    grammar: Any  # the one that was set before, else None
    stream: bool


class Computer(TurboMind):  # type: ignore[misc] - LMDeploy has no types
    """LMDeploy's engine without GPU and weights; stands for its `model_comm` as well."""

    def __init__(self) -> None:  # the real one loads weights
        self.answer: Sequence[int] = ()
        self.status = FINISH
        self.likelihoods: list[dict[int, float]] | None = None
        self.is_held = False  # no request goes on
        self.is_deaf = False  # nor does it end when it is cancelled
        self.asked: list[Asked] = []
        self.cancelled = 0
        self.model_comm = self
        self._running: list[_ModelRequest] = []
        self._turn = threading.Condition()
        self._over = False
        self._grammar_compiler = None
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def opened(self, folder: str, config: TurbomindEngineConfig) -> "Computer":
        """See `played.Native.opened`."""
        self.engine_config = config
        self.tokenizer = Tokenizer(folder)
        self._vocab_size = len(self.tokenizer.model.model)
        return self

    # ── as the native module has it ──

    def create_request(self) -> "_ModelRequest":
        return _ModelRequest(self)

    def get_schedule_metrics(self, *rank: int) -> Any:
        return _tm.ScheduleMetrics() if rank else super().get_schedule_metrics()

    @property
    def running(self) -> int:
        with self._turn:
            return len(self._running)

    def run(self, request: "_ModelRequest") -> None:
        with self._turn:
            self._running.append(request)
            self._turn.notify()

    def cancel(self, request: "_ModelRequest") -> None:
        with self._turn:
            self.cancelled += 1
            request.is_cancelled = True
            self._turn.notify()

    def hold(self, *, is_held: bool) -> None:
        """Let no request go on, or all of them."""
        with self._turn:
            self.is_held = is_held
            self._turn.notify()

    def close(self) -> None:
        with self._turn:
            self._over = True
            self._turn.notify()
        self._thread.join(10)

    def _compute(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._over or self._movable())
                if self._over:
                    return
                for request in self._movable():
                    if request.step():
                        self._running.remove(request)

    def _movable(self) -> list["_ModelRequest"]:
        held, deaf = self.is_held, self.is_deaf
        return [r for r in self._running if (not deaf if r.is_cancelled else not held)]


class _ModelRequest:
    """Stands for `_tm.ModelRequest`: one handle of the pool."""

    def __init__(self, computer: Computer) -> None:
        self._computer = computer
        self._grammar: Any = None
        self.is_cancelled = False

    def set_grammar(self, grammar: Any) -> None:
        assert isinstance(grammar, _tm.CompiledGrammar)
        self._grammar = grammar

    def cancel(self) -> None:
        self._computer.cancel(self)

    def forward(  # noqa: PLR0917 - the native one's
        self,
        inputs: Any,
        images: Any,
        session: Any,
        config: Any,
        stream: bool,
        metrics: bool,
        signal: Callable[[], None],
    ) -> tuple[Any, Any, Any]:
        assert isinstance(inputs, _tm.TensorMap)
        assert isinstance(session, _tm.SessionParam)
        assert isinstance(config, _tm.GenerationConfig)
        assert (images, metrics) == (None, True)
        tokens = torch.from_dlpack(dict(inputs.items())["input_ids"]).tolist()
        self._computer.asked.append(Asked(tokens, config, self._grammar, stream))
        self._grammar, self.is_cancelled = None, False
        self._state = _State(signal)
        self._answer, self._said = list(self._computer.answer), 0
        self._length, self._config = len(tokens), config
        room = config.max_new_tokens + 1
        self._out = {"output_ids": torch.zeros(len(tokens) + room, dtype=torch.int32)}
        if config.output_logprobs:
            self._out |= {
                "logprob_vals": torch.zeros(room, _MOST_LIKELIHOODS),
                "logprob_indexes": torch.zeros(room, _MOST_LIKELIHOODS, dtype=torch.int32),
                "logprob_nums": torch.zeros(room, dtype=torch.int32),
            }
        made = _tm.TensorMap()
        for name, tensor in self._out.items():
            made[name] = _tm.from_dlpack(tensor)
        self._computer.run(self)
        return made, self._state, SimpleNamespace(cached_tokens=1, enqueue_time=0, scheduled_time=0)

    def step(self) -> bool:
        """Write one token, or the last word; tell whether that was it."""
        if self.is_cancelled:
            self._state.publish(CANCEL, self._length)
            return True
        if self._said < min(len(self._answer), self._config.max_new_tokens):
            token = self._answer[self._said]
            self._out["output_ids"][self._length] = token
            if self._config.output_logprobs:
                self._write_likelihoods()
            self._said += 1
            self._length += 1
            stops = self._config.stop_ids[0]
            if token not in stops and self._said < self._config.max_new_tokens:
                self._state.publish(0, self._length)
                return False
        self._state.publish(self._computer.status, self._length)
        return True

    def _write_likelihoods(self) -> None:
        row = (self._computer.likelihoods or [])[self._said]
        self._out["logprob_nums"][self._said] = len(row)
        for n, (token, value) in enumerate(row.items()):
            self._out["logprob_indexes"][self._said, n] = token
            self._out["logprob_vals"][self._said, n] = value


class _State:
    """Stands for `_tm.AtomicRequestState`."""

    def __init__(self, signal: Callable[[], None]) -> None:
        self._signal = signal
        self._lock = threading.Lock()
        self._said: Any = None

    def publish(self, status: int, length: int) -> None:
        with self._lock:
            is_first, self._said = (
                self._said is None,
                SimpleNamespace(status=status, seq_len=length),
            )
        if is_first:
            self._signal()

    def consume(self) -> Any:
        with self._lock:
            said, self._said = self._said, None
        return said
