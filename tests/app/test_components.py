"""What the tabs share, and what their controls mean."""

import asyncio
from types import SimpleNamespace
from typing import Any

import gradio
import pytest
import torch
from PIL import Image

from ldmae.app.components import _KEPT, _message_of, _picked, _uploaded, drop_zone, told
from ldmae.app.generate import GenerationRequest
from ldmae.app.generate_tab import _filled, _request_of, _values_of
from ldmae.config.diffusion import SamplingConfig
from ldmae.core.errors import UserError

from ..pictures import encoded
from .conftest import photo


def test_a_mistake_is_told_in_full():
    assert _message_of(UserError("there is no <b>class</b>")) == "There is no <b>class</b>"
    assert _message_of(UserError("os:getcwd is no folder")).startswith("os:getcwd")


def test_of_any_other_error_the_visitor_learns_nothing_and_the_log_everything(caplog):
    text = _message_of(RuntimeError("secret /path"))
    assert "secret" not in text
    assert "failed on the server" in text
    assert "secret /path" in caplog.text
    assert "memory" in _message_of(torch.OutOfMemoryError("x"))


def test_handlers_tell_their_errors_in_the_bar_as_text():
    status = gradio.HTML()

    @told(status)
    async def broken(value: int) -> None:
        raise UserError(f"it is <b>{value}</b>")

    text = asyncio.run(broken(3))[status]
    assert 'role="alert"' in text
    assert "It is &lt;b&gt;3&lt;/b&gt;" in text

    @told(status)
    async def breaking(value: int):
        yield value
        raise UserError(f"it was {value}")

    async def follow() -> list[Any]:
        return [item async for item in breaking(4)]

    first, last = asyncio.run(follow())
    assert first == 4
    assert "It was 4" in last[status]


def test_a_stream_that_nobody_follows_any_more_is_closed():
    closed = []

    @told(gradio.HTML())
    async def stream():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async def leave() -> None:
        following = stream()
        await anext(following)
        await following.aclose()

    asyncio.run(leave())
    assert closed == [True]


VALUES = (1, 4, 99, 20, 2.5, 0.1, 0.9, "heun", 0.5, 3)


def test_controls_and_wishes_say_the_same():
    for values in (VALUES, (-1, 1, 0, 1, 1.0, 0.0, 1.0, "euler", 1.0, 0)):
        assert _values_of(_request_of(values)) == list(values)
    assert _request_of((-1, *VALUES[1:])).label is None
    assert _request_of((*VALUES[:-1], 0)).sampling.guidance_channels is None
    own = (*VALUES[:8], 0, *VALUES[9:])
    assert _request_of(own).sampling.timestep_shift is None
    assert _values_of(_request_of(own)) == list(own)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(len(VALUES)))
def test_an_empty_field_is_told(place, value):
    with pytest.raises(UserError, match="a setting is empty or no finite number"):
        _request_of((*VALUES[:place], value, *VALUES[place + 1 :]))


def test_an_interval_that_ends_before_it_begins_is_told():
    with pytest.raises(UserError, match=r"ends at t = 0\.1, before its start at 0\.9"):
        _request_of((*VALUES[:5], 0.9, 0.1, *VALUES[7:]))


def test_only_the_same_weights_make_a_picture_again(bench):
    request = GenerationRequest(label=1, count=1, sampling=SamplingConfig())
    own = bench.made_by
    assert _filled(bench, dict(own), request)[1] == "good"
    other = {own["model"]: "other weights of small", "far": "made with far", "": "an unnamed model"}
    for name, told_so in other.items():
        text, kind = _filled(bench, {"model": name, "weights": "f00"}, request)
        assert kind == "plain"
        assert told_so in text
        assert "makes a different one" in text
    assert _filled(bench, {"model": own["model"]}, request)[1] == "plain"


def test_of_a_huge_picture_its_middle_is_kept(bench):
    huge, long = (Image.new("RGB", size, "red") for size in ((3000, 2 * _KEPT), (3 * _KEPT, 40)))
    assert _uploaded(bench, encoded(huge)).size == (_KEPT, _KEPT)
    assert _uploaded(bench, encoded(long)).size == (40, 40)
    assert _uploaded(bench, encoded(photo(70, 50))).size == (70, 50)
    with pytest.raises(UserError, match="no file arrived"):
        _uploaded(bench, None)


@pytest.mark.parametrize("index", [-1, 5, 10**9, "0", 1.0, None, True])
def test_only_images_that_are_there_can_be_picked(bench, index):
    with pytest.raises(UserError, match="there is no such example image"):
        _picked(bench, SimpleNamespace(index=index))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is no such example image"):
        _picked(bench, SimpleNamespace())  # type: ignore[arg-type]


def test_a_picked_image_is_the_one_that_was_clicked(bench):
    assert _picked(bench, SimpleNamespace(index=3)) is bench.samples[3].image  # type: ignore[arg-type]


def test_nothing_is_fetched_from_an_address_that_a_forged_request_names():
    with gradio.Blocks():
        drop = drop_zone("Picture", "drop")
    with pytest.raises(gradio.Error, match="must be uploaded"):
        asyncio.run(drop.async_move_resource_to_block_cache("https://example.org/picture.png"))
    assert asyncio.run(drop.async_move_resource_to_block_cache(None)) is None
