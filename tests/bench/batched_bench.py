"""llama-batched-bench: llama.cpp's decode without a server, texts or sampling around it."""

import asyncio
import dataclasses

import msgspec

from tests.bench.client import BenchError
from tests.bench.peer_build import peer_programs
from tests.bench.servers import LOG_TAIL, Settings, guarded, with_settings

_LIMIT_S = 300.0


class Measured(msgspec.Struct):
    """A line of its JSON: prompts of all sequences, then tokens of all sequences; times in s."""

    pp: int
    tg: int
    pl: int
    t_pp: float
    t_tg: float

    @property
    def whole_per_s(self) -> float:
        """Answer tokens by the time of prompts and answers."""
        return self.pl * self.tg / (self.t_pp + self.t_tg)

    @property
    def steady_per_s(self) -> float:
        """Answer tokens by the time of answers."""
        return self.pl * self.tg / self.t_tg


@dataclasses.dataclass(frozen=True)
class BatchedBench:
    """A side that is no server: every measurement is a run of the program."""

    name: str
    command: tuple[str, ...]

    async def measure(self, n_sequences: int, n_prompt: int, n_tokens: int) -> Measured:
        """Decode prompts and answers of these lengths, all sequences together."""
        lengths = ("-npl", str(n_sequences), "-npp", str(n_prompt), "-ntg", str(n_tokens))
        process = await asyncio.create_subprocess_exec(
            *self.command,
            *lengths,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_LIMIT_S):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        found = measured(said.decode(errors="replace"))
        if process.returncode or found is None or found.pl != n_sequences:
            tail = "\n".join(said.decode(errors="replace").splitlines()[-LOG_TAIL:])
            raise BenchError(f"{self.name} ended with {process.returncode}: {tail}")
        return found


def measured(said: str) -> Measured | None:
    """Return the last measurement that the program wrote."""
    lines = [line for line in said.splitlines() if line.startswith("{")]
    return msgspec.json.decode(lines[-1], type=Measured) if lines else None


def batched_bench(settings: Settings, name: str) -> BatchedBench:
    """Return the program with the settings of the other sides."""
    program = str(peer_programs() / "llama-batched-bench")
    options = ("--kv-unified", "--output-format", "jsonl")
    return BatchedBench(name, guarded((program, *options, *with_settings(settings))))
