import json
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldmae.app.generate import (  # the page shows what they make
    _KEY,
    _MOST_PICTURES,
    _SHOWN,
    MOST_STEPS,
    SEEDS,
    GenerationRequest,
    Progress,
    _own_pipeline,
    _Preview,
    check_request,
    estimate_seconds,
    generate,
    most_pictures,
    read_settings,
    request_from,
)
from ldmae.app.generate_tab import _class_choices
from ldmae.app.turns import Stopped
from ldmae.config.diffusion import SamplingConfig
from ldmae.core.errors import UserError
from ldmae.core.random import generator
from ldmae.evaluation.reconstruction import to_uint8
from ldmae.run.sampling import picture_size

from ..pictures import encoded
from .conftest import CLASSES, SIZE


def request(label: int | None = 1, count: int = 2, **sampling) -> GenerationRequest:
    chosen = {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": 5} | sampling
    return GenerationRequest(label=label, count=count, sampling=SamplingConfig(**chosen))


def pixels(made) -> np.ndarray:
    return np.stack([np.asarray(one.image) for one in made]).astype(int)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_the_same_wish_gives_the_same_pictures(pipeline, solver):
    first, second = (generate(pipeline, request(solver=solver), CLASSES) for _ in range(2))
    assert [one.png() for one in first] == [one.png() for one in second]
    assert pixels(first).std() > 5


def test_another_seed_class_or_solver_gives_another_picture(pipeline):
    first = pixels(generate(pipeline, request(count=1), CLASSES))
    for other in (request(count=1, seed=6), request(2, count=1), request(count=1, solver="heun")):
        assert (first != pixels(generate(pipeline, other, CLASSES))).any()


def test_each_picture_has_a_seed_of_its_own_that_makes_it_again_alone(pipeline):
    made = generate(pipeline, request(count=3), CLASSES)
    assert [one.settings["seed"] for one in made] == [5, 6, 7]
    alone = generate(pipeline, request(count=1, seed=7), CLASSES)
    assert np.abs(pixels(made)[2] - pixels(alone)[0]).max() <= 1


def test_pictures_are_those_of_the_pipeline_itself(pipeline):
    made = generate(pipeline, request(guidance_interval=[0.1, 0.8], timestep_shift=0.5), CLASSES)
    expected = pipeline(
        [1, 1],
        guidance_scale=2.0,
        guidance_interval=(0.1, 0.8),
        num_inference_steps=4,
        timestep_shift=0.5,
        generator=[generator(5 + k, "sample", 0) for k in range(2)],
    ).images
    assert np.abs(pixels(made) - np.stack([np.asarray(image) for image in expected])).max() <= 1


def test_every_class_comes_in_turn_where_none_is_chosen(pipeline):
    made = generate(pipeline, request(None, count=4), CLASSES)
    assert [one.settings["class"] for one in made] == ["faces", "hearts", "clocks", "faces"]
    alone = generate(pipeline, request(2, count=1, seed=7), CLASSES)
    assert np.abs(pixels(made)[2] - pixels(alone)[0]).max() <= 1


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 4), ("heun", 7)])
def test_progress_is_told_after_every_evaluation(pipeline, solver, evaluations):
    seen: list[Progress] = []
    generate(pipeline, request(solver=solver), CLASSES, report=seen.append)
    assert [news.done for news in seen[:evaluations]] == list(range(1, evaluations + 1))
    assert {news.total for news in seen} == {evaluations}
    assert {news.steps for news in seen} == {4}
    assert all(x.seconds <= y.seconds for x, y in pairwise(seen))


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_preview_is_where_the_path_ends_if_it_goes_straight_on(pipeline, solver):
    own = _own_pipeline(pipeline, solver)
    own.scheduler.set_timesteps(4)
    sigmas = own.scheduler.sigmas
    noise, end = (torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    preview = _Preview(own)
    shown = [preview.after(k, sigmas[k + 1] * noise + (1 - sigmas[k + 1]) * end) for k in range(3)]
    assert shown[0] is None
    first = next(pictures for pictures in shown if pictures is not None)
    expected = to_uint8(own.decode_latents(end)).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(first - expected).max() <= 1


def test_previews_are_of_the_first_few_pictures_and_not_of_every_step(pipeline):
    seen: list[Progress] = []
    generate(pipeline, request(count=_SHOWN + 2, num_inference_steps=40), CLASSES, report=seen.append)
    assert seen[0].preview is None
    previews = [news.preview for news in seen[2:]]
    assert 0 < len({id(each) for each in previews}) < 39
    assert all(
        each is not None for each in previews
    )  # the newest one is told again, as reports may be skipped
    assert previews[0].shape == (_SHOWN, SIZE, SIZE, 3)
    assert previews[0].dtype == np.uint8


def test_a_job_ends_at_once_when_its_report_says_so(pipeline):
    seen = []

    def report(news: Progress) -> None:
        seen.append(news)
        if news.done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        generate(pipeline, request(num_inference_steps=50), CLASSES, report=report)
    assert len(seen) == 2


def test_a_shared_pipeline_is_not_changed_and_serves_several_at_once(pipeline):
    scheduler, config = pipeline.scheduler, dict(pipeline.scheduler.config)
    requests = [
        request(count=1, seed=3),
        request(count=2, solver="heun", seed=9),
        request(0, num_inference_steps=9),
    ]
    expected = [[one.png() for one in generate(pipeline, each, CLASSES)] for each in requests]
    found: dict[int, list[bytes]] = {}

    def work(k: int) -> None:
        found[k] = [one.png() for one in generate(pipeline, requests[k], CLASSES)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[k] for k in range(3)] == expected
    assert pipeline.scheduler is scheduler
    assert dict(pipeline.scheduler.config) == config


def test_the_size_of_pictures_is_known_without_generating(pipeline):
    assert picture_size(pipeline) == SIZE


# ---- settings that travel with a picture


def test_a_picture_carries_what_makes_it_again(pipeline):
    sampling = {
        "guidance_interval": [0.1, 0.8],
        "timestep_shift": 0.5,
        "guidance_channels": 3,
        "solver": "heun",
    }
    made = generate(
        pipeline, request(None, count=3, **sampling), CLASSES, {"model": "mine", "weights": "f00"}
    )[2]
    settings = read_settings(made.png())
    assert settings["model"] == "mine"
    again = request_from(settings, CLASSES, _MOST_PICTURES)
    assert again == request(2, count=1, seed=7, **sampling)
    assert np.abs(pixels(generate(pipeline, again, CLASSES)) - pixels([made])).max() <= 1


def test_a_picture_is_named_after_its_class_and_seed(pipeline):
    (made,) = generate(pipeline, request(count=1), ["a", "what/ever: <b>", "c"])
    assert made.file_name == "ldmae-what-ever---b-5.png"


def png(settings: object = None, key: str = _KEY) -> bytes:
    text = PngInfo()
    text.add_text(key, settings if isinstance(settings, str) else json.dumps(settings))
    return encoded(Image.new("RGB", (4, 4)), pnginfo=text)


FRAMES = [Image.new("L", (16, 16), 40 * k) for k in range(4)]
ANIMATION = encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:])
GOOD = {
    "class": "hearts",
    "label": 1,
    "seed": 4,
    "steps": 10,
    "solver": "euler",
    "guidance": 3.0,
    "guidance_interval": [0.0, 1.0],
    "guidance_channels": None,
    "timestep_shift": 0.5,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "not a PNG with ldmae settings"),
        (png(GOOD)[:30], "not a PNG with ldmae settings"),
        (png(GOOD, "parameters"), "has no ldmae settings"),
        (png("{not json"), "not a PNG with ldmae settings"),
        (png([1, 2]), "has no ldmae settings"),
        (encoded(Image.new("RGB", (4, 4)), "JPEG"), "not a PNG with ldmae settings"),
        (ANIMATION, "has no ldmae settings"),  # whose frames are not gone through
    ],
)
def test_a_file_without_settings_is_told(content, message):
    with pytest.raises(UserError, match=message):
        read_settings(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 251}, "steps must be from 1 to 250"),
        ({"steps": "many"}, "incomplete or damaged"),
        ({"steps": 2.5}, "not an integer"),
        ({"steps": True}, "not a number"),
        ({"seed": -1}, "the seed must be"),
        ({"seed": SEEDS}, "the seed must be"),
        ({"guidance": float("nan")}, "not a number"),
        ({"guidance": float("inf")}, "not a number"),
        ({"guidance_interval": [0.9, 0.1]}, "guidance_interval"),
        ({"guidance_interval": 3}, "incomplete or damaged"),
        ({"solver": "__import__('os')"}, "solver must be euler, heun"),
        ({"solver": "os:abort"}, "the solver must be euler or heun in the web app"),
        ({"timestep_shift": -1}, "timestep_shift"),
        ({"timestep_shift": 0}, "the time shift must be"),
        ({"timestep_shift": 4}, "the time shift must be"),
        ({"guidance": 11}, "guidance must be from 0 to 10"),
        ({"guidance": 10**400}, "incomplete or damaged"),
        ({"steps": 10**400}, "incomplete or damaged"),
        ({"class": "dragons"}, "class 'dragons', which this model does not have"),
        ({"label": 9, "class": "heart"}, "did you mean 'hearts'"),
    ],
)
def test_settings_that_somebody_made_up_are_refused(changes, message):
    settings = read_settings(png(GOOD | changes))
    with pytest.raises(UserError, match=message):
        request_from(settings, CLASSES, _MOST_PICTURES)


@pytest.mark.parametrize("name", GOOD)
def test_no_setting_may_be_missing(name):
    settings = {key: value for key, value in GOOD.items() if key != name}
    with pytest.raises(UserError, match="incomplete or damaged"):
        request_from(settings, CLASSES, _MOST_PICTURES)


def test_a_class_is_found_by_its_name_where_its_number_is_another_here():
    assert request_from(GOOD | {"label": 0}, CLASSES, _MOST_PICTURES).label == 1
    assert request_from(GOOD | {"label": 2}, ["hearts", "x", "hearts"], _MOST_PICTURES).label == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(count=0), f"images must be from 1 to {_MOST_PICTURES}"),
        (request(count=_MOST_PICTURES + 1), f"images must be from 1 to {_MOST_PICTURES}"),
        (request(num_inference_steps=MOST_STEPS + 1), f"steps must be from 1 to {MOST_STEPS}"),
        (request(count=3, seed=SEEDS - 2), "the seed must be"),
        (request(label=3), "the class must be from 0 to 2, got 3"),
        (request(label=-2), "the class must be from 0 to 2, got -2"),
    ],
)
def test_nobody_may_wish_for_too_much(bad, message):
    with pytest.raises(UserError, match=message):
        check_request(bad, 3, _MOST_PICTURES)


def test_how_long_a_wish_takes_is_told_by_its_evaluations():
    plain = request(count=4, num_inference_steps=50, guidance_scale=1.0)
    assert estimate_seconds(plain, 0.1) == pytest.approx(20)
    guided = request(count=4, num_inference_steps=50, guidance_scale=3.0, guidance_interval=[0.0, 0.5])
    assert estimate_seconds(guided, 0.1) == pytest.approx(30)
    heun = request(count=4, num_inference_steps=50, guidance_scale=1.0, solver="heun")
    assert estimate_seconds(heun, 0.1) == pytest.approx(39.6)  # its last step is one evaluation


def test_of_large_pictures_and_by_large_models_fewer_are_made_at_once():
    assert most_pictures(size=48, cells=64, parameters=5_000_000, device="cpu") == _MOST_PICTURES
    assert most_pictures(size=512, cells=64, parameters=1, device="cpu") == 16
    assert most_pictures(size=256, cells=1024, parameters=130_000_000, device="cpu") == 3
    assert most_pictures(size=256, cells=1024, parameters=130_000_000, device="cuda") == _MOST_PICTURES
    assert most_pictures(size=256, cells=1024, parameters=10**12, device="cpu") == 1
    check_request(request(count=16), 3, 16)
    check_request(request(count=3, seed=SEEDS - 3), 3, _MOST_PICTURES)
    with pytest.raises(UserError, match="images must be from 1 to 16"):
        check_request(request(count=17), 3, 16)


def test_all_classes_are_those_that_were_trained():
    request = GenerationRequest(label=None, count=4, sampling=SamplingConfig())
    assert request.labels([0, 2]) == [0, 2, 0, 2]
    assert _class_choices(["cat", "1", "dog"], [0, 2])[1:] == [("cat", 0), ("dog", 2)]
