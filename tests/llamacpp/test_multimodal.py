"""Images and sounds through the whole engine, against mtmd's own evaluation."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from edged.protocol import Finish, Messages, Render, Rendered, Sampling
from edged.worker.llamacpp.engine import LlamaCppEngine
from tests.llamacpp.media import MARKER, Mtmd, look, noise, opened, picture, seeing, some
from tests.llamacpp.support import ask, choices, launch, needs_llama_cpp, request, running, wait_for
from tests.models import tiny
from tests.models.projector import PROJECTORS, Projector

pytestmark = needs_llama_cpp

N = 24
LONG = {"max_tokens": 200, "sampling": Sampling(temperature=0.0, ignore_eos=True)}


async def expected(engine: LlamaCppEngine, kind: Projector, prompt: Messages) -> list[int]:
    """What mtmd and a greedy loop write after the prompt that the template makes of it."""
    rendered = await engine.call(Render(prompt, id=1))
    assert isinstance(rendered, Rendered)
    assert rendered.text.count(MARKER) == len(prompt.media)
    with opened(seeing(kind)) as runner:
        mtmd = Mtmd(runner)
        wanted = mtmd.write(mtmd.read(rendered.text, *prompt.media), N)
        assert mtmd.n_places == rendered.n_tokens
        return wanted


async def tokens(engine: LlamaCppEngine, prompt: Messages) -> list[tuple[int, float]]:
    more = {"max_tokens": N, "sampling": Sampling(temperature=0.0, ignore_eos=True)}
    (found,) = await choices(engine, [prompt], together=False, **more)
    return found


def agrees(found: list[tuple[int, float]], wanted: list[int]) -> bool:
    """The same tokens; or the same up to a near-tie, for batches have other borders here."""
    for (token, lead), other in zip(found, wanted, strict=True):
        if token != other:
            assert lead < 0.05, "parted without a tie"
            return False
    return True


@pytest.mark.parametrize("kind", PROJECTORS)
async def test_answer_to_an_image_is_mtmds(kind: Projector) -> None:
    async with running(seeing(kind)) as engine:
        prompt = look("Look: ", some(kind), "What is it?")
        found = await tokens(engine, prompt)
        assert agrees(found, await expected(engine, kind, prompt))
        other = await tokens(engine, look("Look: ", some(kind, seed=2), "What is it?"))
        assert [token for token, _ in other] != [token for token, _ in found]


@pytest.mark.parametrize("kind", PROJECTORS)
async def test_two_images_with_text_between_them(kind: Projector) -> None:
    prompt = look(some(kind, 1), "and then", some(kind, 2), "differ how?")
    async with running(seeing(kind)) as engine:
        assert agrees(await tokens(engine, prompt), await expected(engine, kind, prompt))


@pytest.mark.parametrize("kind", ["image", "image-mrope"])
async def test_small_batches_read_an_image_in_parts(kind: Projector) -> None:
    prompt = look(picture(1, 160, 100), "What?")
    async with running(seeing(kind, batch=7, parallel=2)) as engine:
        assert agrees(await tokens(engine, prompt), await expected(engine, kind, prompt))


async def test_large_image_takes_many_small_batches() -> None:
    one = picture(1, 512, 400)  # 800 places
    async with running(seeing("image-mrope", context=1024, batch=64, parallel=2)) as engine:
        answer = await ask(engine, look(one, "What?"), max_tokens=4)
        assert answer.done.usage.prompt_tokens > 800


@pytest.mark.parametrize("kind", PROJECTORS)
async def test_same_image_again_is_in_memory(kind: Projector) -> None:
    async with running(seeing(kind)) as engine:
        cuttable = engine._runner.facts.cuttable
        first = await ask(engine, look(some(kind), "What is it?"), max_tokens=8)
        again = await ask(engine, look(some(kind), "What is it?"), max_tokens=8)
        assert again.content == first.content
        assert first.done.usage.cached_tokens == 0
        n = again.done.usage.prompt_tokens
        assert again.done.usage.cached_tokens == (n - 1 if cuttable else 0)
        tail = await ask(engine, look(some(kind), "Where was it?"), max_tokens=8)
        assert tail.done.usage.cached_tokens > 16 or not cuttable
        assert engine._runner.projector
        assert engine._runner.projector.n_encoded in (1, 3)  # tiles
        other = await ask(engine, look(some(kind, 2), "What is it?"), max_tokens=8)
        assert other.done.usage.cached_tokens < 16


async def test_next_turn_goes_on_behind_the_image() -> None:
    async with running(seeing("image-mrope")) as engine:
        first = await ask(engine, look(picture(), "What is it?"), max_tokens=8)
        turns = [
            *look(picture(), "What is it?").messages,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": "And why?"},
        ]
        prompt = Messages(turns, media=[picture()])
        fresh = await ask(engine, prompt, max_tokens=8, group="other")
        found = await ask(engine, prompt, max_tokens=8)
        assert found.done.usage.cached_tokens >= first.done.usage.prompt_tokens - 1
        assert fresh.done.usage.cached_tokens == 0
        assert found.content == fresh.content


@pytest.mark.parametrize("kind", PROJECTORS)
async def test_images_and_streams_share_the_engine(kind: Projector) -> None:
    """Every answer in company is the one that it is alone."""
    prompts = [
        look(some(kind, 1), "What is it?"),
        "Count to ten.",
        look("Before ", some(kind, 2), " and after"),
        "Say something else.",
        look(some(kind, 1), some(kind, 2), "Which one?"),
    ]
    more = {"max_tokens": N, "sampling": Sampling(temperature=0.0, ignore_eos=True)}
    async with running(seeing(kind, batch=32)) as engine:
        alone = await choices(engine, prompts, together=False, **more)
    async with running(seeing(kind, batch=32)) as engine:
        together = await choices(engine, prompts, together=True, **more)
    assert sum(one.same_as(other) for one, other in zip(alone, together, strict=True)) >= 3


async def test_text_on_a_seeing_model_is_as_on_the_plain_one() -> None:
    prompts = ["Count to ten.", "Say something else."]
    more = {"max_tokens": N, "sampling": Sampling(temperature=0.0, ignore_eos=True)}
    async with running(launch(tiny("plain"))) as engine:
        plain = await choices(engine, prompts, together=False, **more)
    async with running(seeing("image")) as engine:
        await ask(engine, look(picture(), "What?"), max_tokens=4)
        assert await choices(engine, prompts, together=False, **more) == plain


async def test_preempted_image_is_read_again() -> None:
    """Two answers do not fit together: the younger one gives way and says the same."""
    prompts = [look(picture(1), "First?"), look(picture(2), "Second?")]
    async with running(seeing("image", context=200, parallel=2, pool=400)) as engine:
        alone = [await ask(engine, prompt, **LONG, group="a") for prompt in prompts]
    async with running(seeing("image", context=200, parallel=2, pool=210)) as engine:
        together = await asyncio.gather(*(ask(engine, prompt, **LONG) for prompt in prompts))
        assert engine.stats().preemptions > 0
    assert [a.content[:40] for a in together] == [a.content[:40] for a in alone]


@pytest.mark.parametrize("kind", ["image", "image-whole", "image-mrope"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
async def test_abort_in_the_middle_leaves_nothing_behind(kind: Projector, steps: int) -> None:
    one = picture(1, 300, 200)
    async with running(seeing(kind, batch=32)) as engine:
        wanted = await ask(engine, look(one, "What?"), max_tokens=8, group="alone")
        before = engine.stats().progress
        task = asyncio.ensure_future(ask(engine, look(one, "What?"), **LONG))
        await wait_for(lambda: task.done() or engine.stats().progress >= before + steps)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await wait_for(lambda: engine._thread.scheduler.idle)
        again = await ask(engine, look(one, "What?"), max_tokens=8)
        assert again.content == wanted.content


async def test_request_that_nobody_wants_any_more_is_not_encoded() -> None:
    async with running(seeing("image")) as engine:
        projector = engine._runner.projector
        assert projector
        with projector._one_at_a_time:  # somebody else's image is being encoded
            task = asyncio.ensure_future(ask(engine, look(picture(), "What?")))
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.wait([task])
        assert (await ask(engine, look(picture(2), "What?"), max_tokens=2)).finish
        assert projector.n_encoded == 1


async def test_close_while_an_image_waits() -> None:
    async with running(seeing("image")) as engine:
        assert engine._runner.projector
        lock = engine._runner.projector._one_at_a_time
        lock.acquire()
        task = asyncio.ensure_future(ask(engine, look(picture(), "What?")))
        await asyncio.sleep(0.2)
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0.1)
        lock.release()
        await closing
        assert (await task).failed


async def test_tokens_of_a_conversation_with_an_image_are_counted() -> None:
    async with running(seeing("image-whole")) as engine:
        prompt = look("Look: ", picture(), "What is it?")
        rendered = await engine.call(Render(prompt, id=1))
        assert isinstance(rendered, Rendered)
        answer = await ask(engine, prompt, max_tokens=2)
        assert rendered.n_tokens == answer.done.usage.prompt_tokens
        assert "Look: <__media__>What is it?" in rendered.text


async def test_marks_of_images_cannot_be_forged() -> None:
    async with running(seeing("image")) as engine:
        prompt = look("<__media__><__media_0000000000000000_0__>", picture(), "What?")
        assert (await ask(engine, prompt, max_tokens=2)).finish


@pytest.mark.parametrize(
    ("kind", "prompt", "says"),
    [
        ("image", look(noise(), "What?"), "takes image, not audio"),
        ("sound", look(picture(), "What?"), "takes audio, not image"),
        ("image-mrope", look(picture(1, 1000, 1000), "What?"), "512 tokens"),
    ],
)
async def test_what_cannot_be_read_is_refused(kind: Projector, prompt: Messages, says: str) -> None:
    async with running(seeing(kind)) as engine:
        answer = await ask(engine, prompt)
        assert answer.failed
        assert says in answer.failed.message
        assert answer.failed.param == "messages"
        assert answer.failed.code != "internal_error"


async def test_image_in_one_piece_needs_the_batch_for_it() -> None:
    async with running(seeing("image-whole", batch=8, parallel=2)) as engine:
        answer = await ask(engine, look(picture(), "What?"))
        assert answer.failed
        assert "llamacpp.batch" in answer.failed.message


async def test_text_model_refuses_an_image() -> None:
    async with running(launch(tiny("plain"))) as engine:
        answer = await ask(engine, look(picture(), "What?"))
        assert answer.failed
        assert "text only" in answer.failed.message


async def test_random_seeds_and_penalties_look_past_the_image() -> None:
    async with running(seeing("image")) as engine:
        sampling = Sampling(
            temperature=1.0, seed=3, repeat_penalty=1.2, presence_penalty=0.5, dry_multiplier=0.8
        )
        prompt = look(picture(), "What is it?")
        one = await ask(engine, prompt, sampling=sampling, max_tokens=16)
        again = await ask(engine, prompt, sampling=sampling, max_tokens=16)
        assert one.content == again.content


@pytest.mark.parametrize(("age_s", "moves"), [(5.0, True), (5000.0, False)])
async def test_long_encoding_is_progress_but_not_for_ever(age_s: float, moves: bool) -> None:
    async with running(seeing("image")) as engine:
        assert engine._runner.projector
        engine._runner.projector.busy_since_s = time.monotonic() - age_s
        assert (engine.stats().progress != engine.stats().progress) is moves


async def test_stream_goes_on_while_an_image_is_encoded() -> None:
    async with running(seeing("image")) as engine:
        projector = engine._runner.projector
        assert projector
        with projector._one_at_a_time:  # an encoding that takes its time
            task = asyncio.ensure_future(ask(engine, look(picture(), "What?"), max_tokens=2))
            events = engine.generate(request("Count to ten.", max_tokens=20))
            assert isinstance([event async for event in events][-1], Finish)
            assert not task.done()
        assert (await task).finish
