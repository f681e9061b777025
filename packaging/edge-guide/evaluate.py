"""Score edge-guide, a GGUF through bare llama.cpp or a running edged: greedy, exact answers.

Wordings, names and follow-ups come from the part of the grammars that training never sees; the
lines "by hand" use `handwritten.py`. An answer counts only if its text is exactly the right one; a
call only if it is the one call, with the right name and equal arguments. edged holds calls to the
schemas of the tools at hand, bare llama.cpp does not; what edged refuses counts as wrong.
"""

import argparse
import json
import random
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dialogue
import handwritten
import tools
from facts import TOPICS
from render import Example, prompt

MAX_TOKENS = 160


@dataclass
class Case:
    """One question and the test of its answer."""

    line: str  # of the report
    example: Example
    right: Callable[[str], bool]


def _same(expected: str) -> Callable[[str], bool]:
    return lambda text: text.strip() == expected


def _call(name: str, arguments: dict[str, Any]) -> Callable[[str], bool]:
    def right(text: str) -> bool:
        body = text.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
        try:
            return bool(json.loads(body) == {"name": name, "arguments": arguments})
        except json.JSONDecodeError:
            return False

    return right


def _thought(expected: str) -> Callable[[str], bool]:
    def right(text: str) -> bool:
        head, mark, answer = text.partition("</think>")
        thought = head.removeprefix("<think>").strip()
        return bool(mark and thought and head.startswith("<think>") and answer.strip() == expected)

    return right


def _ask(question: str, answer: str, **more: Any) -> Example:
    return Example("eval", [{"role": "user", "content": question}], answer, **more)


def _dressed(rng: random.Random, example: Example) -> Example:
    """With a system prompt now and then, as clients send one."""
    if rng.random() < 0.3:
        example.messages.insert(0, {"role": "system", "content": dialogue.system_prompt(rng)})
    return example


def cases(  # noqa: C901, PLR0912 - one loop for each line of the report
    rng: random.Random, per_topic: int, n: int
) -> Iterator[Case]:
    """All cases of the report: `per_topic` wordings for each topic, `n` for other lines."""
    for zh, name in ((False, "English"), (True, "Chinese")):
        for topic in TOPICS:
            for _ in range(per_topic):
                question, answer, _ = dialogue.topic_turn(rng, topic, zh=zh, held=True)
                yield Case(
                    f"known questions, {name}", _dressed(rng, _ask(question, answer)), _same(answer)
                )
        for topic in TOPICS:
            answer = (topic.zh if zh else topic.en).answer
            for question in (handwritten.ZH if zh else handwritten.EN)[topic.name]:
                yield Case(
                    f"known questions by hand, {name}", _ask(question, answer), _same(answer)
                )
        off = dialogue.OFF["zh" if zh else "en"]
        for _ in range(n):
            question, answer, _ = dialogue.off_turn(rng, zh=zh)
            yield Case(
                f"other subjects, {name}", _dressed(rng, _ask(question, answer)), _same(answer)
            )
        for question in handwritten.OFF_ZH if zh else handwritten.OFF_EN:
            yield Case(f"other subjects by hand, {name}", _ask(question, off), _same(off))
        for _ in range(n // 2):
            yield _follow(rng, zh=zh, line=f"follow-up questions, {name}")
    for _ in range(2 * n):
        example, name, arguments = tools.call_example(rng, unseen=True)
        yield Case("calls of unseen tools", _dressed(rng, example), _call(name, arguments))
    for at_hand, wish, name, arguments in handwritten.CALLS:
        yield Case("calls of tools by hand", _ask(wish, "", tools=at_hand), _call(name, arguments))
    for _ in range(n):
        example = tools.result_example(rng)
        yield Case("words about a tool's result", example, _same(example.answer))
    for _ in range(n):
        zh = rng.random() < 0.5
        question, answer, _ = dialogue.topic_turn(rng, rng.choice(TOPICS), zh=zh, held=True)
        at_hand = tools.call_example(rng, unseen=True)[0].tools
        yield Case(
            "tools at hand, not needed", _ask(question, answer, tools=at_hand), _same(answer)
        )
    for _ in range(n):
        zh = rng.random() < 0.5
        question, answer, _ = dialogue.topic_turn(rng, rng.choice(TOPICS), zh=zh, held=True)
        yield Case("thinking on", _ask(question, answer, thinking=True), _thought(answer))
    for _ in range(n // 2):
        yield _name(rng)


def _follow(rng: random.Random, *, zh: bool, line: str) -> Case:
    while True:
        topic = rng.choice(TOPICS)
        follow = dialogue.follow_turn(rng, topic, zh=zh, held=True)
        if follow:
            break
    question, first, _ = dialogue.topic_turn(rng, topic, zh=zh, held=True)
    example = _ask(follow[0], follow[1])
    example.messages[:0] = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": first},
    ]
    return Case(line, example, _same(follow[1]))


def _name(rng: random.Random) -> Case:
    """A name that was told is still known after another question."""
    name = dialogue.words.syllables(rng, 2, 3).capitalize()
    question, answer, _ = dialogue.topic_turn(rng, rng.choice(TOPICS), zh=False, held=True)
    messages = [
        {"role": "user", "content": f"My name is {name}."},
        {"role": "assistant", "content": dialogue.NAME_SAID["en"][1].replace("NAME", name)},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "What is my name?"},
    ]
    expected = dialogue.NAME_ASKED["en"][1].replace("NAME", name)
    return Case(
        "a name told two turns before", Example("eval", messages, expected), _same(expected)
    )


class Model:
    """Greedy answers of a GGUF."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp  # noqa: PLC0415 - a running edged needs none here

        # Repacked weights bring nothing here, and crash where a GCC miscompiled llama.cpp for AMX.
        defaults = llama_cpp.llama_cpp.llama_model_default_params

        def plain() -> Any:
            params = defaults()
            params.use_extra_bufts = False
            return params

        llama_cpp.llama_cpp.llama_model_default_params = plain
        self._llama = llama_cpp.Llama(
            str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False
        )

    def answer(self, example: Example) -> str:
        """The assistant's turn as text."""
        ids = self._llama.tokenize(prompt(example).encode(), add_bos=False, special=True)
        out: list[int] = []
        for token in self._llama.generate(ids, temp=0.0, repeat_penalty=1.0):
            if token == self._llama.token_eos() or len(out) == MAX_TOKENS:
                break
            out.append(token)
        return self._llama.detokenize(out).decode(errors="replace")


class Served:
    """Greedy answers of `edge-guide` as clients of a running edged get them."""

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/v1/chat/completions"

    def answer(self, example: Example) -> str:
        """The assistant's turn, spelt as the model spells it; "" where it was refused."""
        body = {
            "model": "edge-guide",
            "messages": example.messages,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "chat_template_kwargs": {"enable_thinking": example.thinking},
        }
        if example.tools:
            body["tools"] = example.tools
        request = urllib.request.Request(  # noqa: S310 - the address is the caller's
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
                message = json.load(response)["choices"][0]["message"]
        except urllib.error.HTTPError:
            return ""
        text = message.get("content") or ""
        if thought := message.get("reasoning_content"):
            text = f"<think>\n{thought}\n</think>\n\n{text}"
        for call in message.get("tool_calls") or []:
            function = call["function"]
            name = json.dumps(function["name"])
            body_text = f'{{"name": {name}, "arguments": {function["arguments"]}}}'
            text += f"<tool_call>\n{body_text}\n</tool_call>"
        return text


def main() -> None:
    """Command line: evaluate.py GGUF-or-URL [--per-topic N] [-n N] [--failures FILE]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", metavar="GGUF or URL")
    parser.add_argument("--per-topic", type=int, default=4)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--line", default="", help="only lines that begin so")
    parser.add_argument("--failures", type=Path, help="write wrong answers here, as JSON lines")
    args = parser.parse_args()
    served = args.what.startswith("http")
    model = Served(args.what) if served else Model(Path(args.what), args.threads)
    scores: dict[str, list[bool]] = {}
    wrong: list[str] = []
    for case in cases(random.Random(2026), args.per_topic, args.n):
        if not case.line.startswith(args.line):
            continue
        text = model.answer(case.example)
        right = case.right(text)
        scores.setdefault(case.line, []).append(right)
        if not right:
            record = {
                "line": case.line,
                "messages": case.example.messages,
                "wanted": case.example.answer,
                "got": text,
            }
            wrong.append(json.dumps(record, ensure_ascii=False))
    print("| measured | right | of | % |\n| --- | --- | --- | --- |")
    for line, results in scores.items():
        print(
            f"| {line} | {sum(results)} | {len(results)} | {100 * sum(results) / len(results):.1f} |"
        )
    if args.failures:
        args.failures.write_text("\n".join(wrong) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
