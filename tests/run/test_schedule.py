"""What is fresh, stale, refused and forgotten, by the list of stages and what is recorded."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator

from ldmae.config import Config, load_config
from ldmae.core.errors import UserError
from ldmae.core.locks import locked
from ldmae.core.provenance import Records
from ldmae.run import schedule
from ldmae.run.run import Run, Stage

EXECUTED: Counter[str] = Counter()
_CLASSES = [{"name": "cats", "train": 5, "held_out": 1}, {"name": "dogs", "train": 3, "held_out": 1}]


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (
            {"classes": [*_CLASSES, {"name": "owls", "train": 1, "held_out": 0}]},
            "classes cats, dogs then, cats, d",
        ),
        ({"train": 7}, "8 training and 2 held-out images then, 7 training and 2"),
        (
            {"classes": [{**_CLASSES[0], "train": 4}, {**_CLASSES[1], "train": 4}]},
            "cats 6 then, 5 now, dogs 4 then",
        ),
        ({}, "some of the 8 training and 2 held-out images are others than before"),
    ],
)
def test_other_images_are_told_in_words(tmp_path, now, told):
    then = {"train": 8, "held_out": 2, "classes": _CLASSES}
    train = SimpleNamespace(classes=[each["name"] for each in (then | now)["classes"]])
    run: Any = SimpleNamespace(folder=tmp_path, train=train, counts=lambda: then | now, config=Config())
    changes = ["seed: 0 -> 1", "latents: images: 'a1' -> 'b2'"]
    assert Run.told(run, changes) == changes  # there is no data.json, or it is damaged
    (tmp_path / "data.json").write_text(json.dumps(then))
    first, second = Run.told(run, changes)
    assert first == changes[0]
    assert second.startswith(f"latents: images: {told}")


def make(path, **outputs):
    """Returns what a stage does: it writes a file, and says what came out."""

    def execute(run):
        EXECUTED[path] += 1
        (run.folder / path).mkdir(exist_ok=True)
        (run.folder / path / "x").write_text("")
        return outputs

    return execute


def listed(*, rate=1, steps=4, tuned="t1", encoder="e1", flip=True, keeps=("encoder",), bf16=False):
    """Two trainings, what is encoded by the first, and what joins them, as the pipeline has them."""
    return (
        Stage(
            name="autoencoder.tuning",
            title="",
            reads=("images",),
            outputs=("autoencoder", "encoder"),
            makes=("autoencoder",),
            settings={"tuned": tuned},
            execute=make("autoencoder", autoencoder=f"{tuned}{steps}", encoder=encoder),
            steps=steps,
            costly=True,
            keeps=keeps,
        ),
        Stage(
            name="latents",
            title="",
            reads=("encoder",),
            outputs=("latents",),
            makes=("latents",),
            settings={"flip": flip},
            execute=make("latents", latents=f"{encoder}{flip}"),
            command="ldmae encode",
        ),
        Stage(
            name="diffusion",
            title="",
            reads=("latents",),
            outputs=("diffusion",),
            makes=("diffusion",),
            settings={"rate": rate, "mixed_precision": "bf16" if bf16 else "no"},
            any_precision=True,
            execute=make("diffusion", diffusion=f"{encoder}{flip}{rate}"),
            steps=8,
            costly=True,
        ),
        Stage(
            name="pipeline",
            title="",
            reads=("autoencoder", "diffusion"),
            makes=("pipeline",),
            execute=make("pipeline"),
        ),
    )


class Images:
    def fingerprint(self):
        return "images"


@pytest.fixture
def begin(tmp_path):
    """Opens the run anew, as another start does."""
    accelerator = Accelerator(cpu=True)
    EXECUTED.clear()

    def opened(folder=tmp_path, **changes) -> Run:
        records = Records(folder)
        config = load_config("smoke")
        images: tuple = (Images(), Images())
        return Run(config, Path(folder), accelerator, records, listed(**changes), *images)

    return opened


ALL = ("autoencoder.tuning", "latents", "diffusion", "pipeline")


def states(run, restart=None):
    return [standing.state for standing in schedule._standings_of(run, restart).values()]


def executed(run):
    before = Counter(EXECUTED)
    schedule.execute_stages(run, *ALL)
    return [
        name for name in ("autoencoder", "latents", "diffusion", "pipeline") if EXECUTED[name] > before[name]
    ]


def test_a_new_run_makes_every_stage_and_the_next_start_none(begin):
    assert states(begin()) == ["absent"] * 4
    assert executed(begin()) == ["autoencoder", "latents", "diffusion", "pipeline"]
    assert states(begin()) == ["fresh"] * 4
    assert executed(begin()) == []


def test_what_is_gone_is_made_again_and_what_hangs_on_it_stays(begin, tmp_path):
    schedule.execute_stages(begin(), *ALL)
    (tmp_path / "latents" / "x").unlink()
    (tmp_path / "latents").rmdir()
    assert executed(begin()) == ["latents"]


def test_a_training_that_is_done_never_begins_again_unasked(begin, tmp_path, monkeypatch):
    schedule.execute_stages(begin(), *ALL)
    shutil.rmtree(tmp_path / "diffusion")
    with pytest.raises(UserError, match=r"diffusion is done, but its training states in .* are gone"):
        schedule.execute_stages(begin(), *ALL)
    with pytest.raises(UserError, match=r"autoencoder.tuning is done, .*--restart autoencoder.tuning"):
        schedule.execute_stages(begin(steps=6), *ALL)
    monkeypatch.setattr(schedule, "list_checkpoints", lambda folder: [(4, folder)])
    assert executed(begin()) == ["diffusion"]


def test_a_training_that_another_one_passed_on_is_not_made_again(begin, tmp_path):
    first, *others = listed()
    before = Stage(
        name="autoencoder.pretraining",
        title="",
        outputs=("autoencoder.pretraining",),
        makes=("checkpoints",),
        execute=make("checkpoints", **{"autoencoder.pretraining": "p"}),
        steps=2,
        costly=True,
    )
    both = (before, dataclasses.replace(first, reads=("autoencoder.pretraining",)), *others)
    names = [stage.name for stage in both]
    schedule.execute_stages(dataclasses.replace(begin(), stages=both), *names)
    shutil.rmtree(tmp_path / "checkpoints")
    EXECUTED.clear()
    schedule.execute_stages(dataclasses.replace(begin(), stages=both), *names)
    assert not EXECUTED
    shutil.rmtree(tmp_path / "autoencoder")
    with pytest.raises(UserError, match="pretraining is done, but its training states"):
        schedule.execute_stages(dataclasses.replace(begin(), stages=both), *names)


def test_what_is_done_stays_done_on_a_machine_of_another_precision(begin):
    schedule.execute_stages(begin(), *ALL)
    assert states(begin(bf16=True)) == ["fresh"] * 4
    longer = dataclasses.replace(begin().stages[2], steps=9, settings={"rate": 1, "mixed_precision": "bf16"})
    run = begin()
    run.stages = (*run.stages[:2], longer, run.stages[3])
    with pytest.raises(UserError, match="mixed_precision: 'no' -> 'bf16'"):
        schedule._check(run)


def test_what_another_made_is_not_replaced_unasked(begin, tmp_path):
    (tmp_path / "autoencoder").mkdir()  # by hand
    tuning = begin().stages[0]
    with pytest.raises(UserError, match=r"holds autoencoder already, .*--restart autoencoder.tuning"):
        schedule._refuse_replacing(begin(), tuning)
    (tmp_path / "autoencoder").rmdir()
    schedule._refuse_replacing(begin(), tuning)
    schedule.execute_stages(begin(), *ALL)
    shutil.rmtree(tmp_path / "autoencoder")
    run = begin()
    other = dataclasses.replace(tuning, name="autoencoder.baseline")  # of another kind of autoencoder
    run.stages = (other, *run.stages[1:])
    with pytest.raises(UserError, match="--restart autoencoder"):
        schedule._refuse_replacing(run, other)


def test_a_restart_empties_what_a_link_leads_to_and_keeps_the_link(begin, tmp_path):
    schedule.execute_stages(begin(), *ALL)
    disk = tmp_path / "disk"
    (tmp_path / "latents").rename(disk)
    (tmp_path / "latents").symlink_to(disk)
    schedule._restart(begin(), "latents")
    assert (tmp_path / "latents").is_symlink()
    assert not any(disk.iterdir())
    assert executed(begin()) == ["latents"]
    assert (disk / "x").is_file()


def test_an_interrupted_stage_is_unfinished(begin, tmp_path):
    run = begin()
    schedule.execute_stages(run, "autoencoder.tuning")
    with pytest.raises(KeyboardInterrupt), run.records.running("latents", {"flip": True}, {"encoder": "e1"}):
        raise KeyboardInterrupt
    assert states(begin()) == ["fresh", "unfinished", "absent", "absent"]


@pytest.mark.parametrize(
    ("changes", "refused", "told"),
    [
        ({"tuned": "t2"}, "autoencoder.tuning", "tuned: 't1' -> 't2'"),
        ({"rate": 2}, "diffusion", "rate: 1 -> 2"),
        ({"steps": 3}, "autoencoder.tuning", "steps: 4 -> 3"),
        ({"flip": False}, "diffusion", "latents: flip: True -> False"),
        ({"steps": 5, "keeps": ()}, "diffusion", "autoencoder.tuning: steps: 4 -> 5"),
    ],
)
def test_a_training_is_not_replaced_unasked_nor_what_it_was_begun_on(begin, changes, refused, told):
    schedule.execute_stages(begin(), *ALL)
    run = begin(**changes)
    message = f"{refused} was started with other settings or inputs: {told}. .*--out.*--restart {refused}"
    with pytest.raises(UserError, match=message):
        schedule._check(run)
    with pytest.raises(UserError, match=message):
        schedule.execute_stages(run, *ALL)
    assert executed(begin()) == []


def test_what_is_cheap_is_made_again_where_nothing_costly_hangs_on_it(begin):
    schedule.execute_stages(begin(), "autoencoder.tuning", "latents")
    assert states(begin(flip=False)) == ["fresh", "stale", "absent", "absent"]
    assert executed(begin(flip=False)) == ["latents", "diffusion", "pipeline"]


def test_more_steps_extend_a_training_and_what_hangs_on_it_is_made_again_where_it_comes_out_otherwise(
    begin, monkeypatch
):
    schedule.execute_stages(begin(), *ALL)
    monkeypatch.setattr(schedule, "list_checkpoints", lambda folder: [(4, folder)])
    assert executed(begin(steps=6)) == ["autoencoder", "pipeline"]  # the encoder is as it was


def test_what_is_restarted_leaves_fresh_what_its_outputs_do_not_change(begin):
    schedule.execute_stages(begin(), *ALL)
    run = begin(tuned="t2")
    schedule._check(run, "autoencoder.tuning")
    schedule._restart(run, "autoencoder.tuning")
    assert states(begin(tuned="t2"))[0] == "absent"
    assert executed(begin(tuned="t2")) == ["autoencoder", "pipeline"]
    assert not any(record.replaceable for record in begin().records.stages.values())


def test_what_is_restarted_lets_a_training_be_replaced_that_hangs_on_it(begin):
    schedule.execute_stages(begin(), *ALL)
    schedule._restart(begin(tuned="t2"), "autoencoder.tuning")
    run = begin(tuned="t2", encoder="e2")
    assert executed(run) == ["autoencoder", "latents", "diffusion", "pipeline"]
    with pytest.raises(UserError, match="--restart diffusion"):  # and that once
        schedule._check(begin(tuned="t2", encoder="e2", rate=2))


def test_a_restart_forgets_a_stage_with_all_that_it_made_and_no_other(begin, tmp_path):
    schedule.execute_stages(begin(), *ALL)
    (tmp_path / "checkpoints" / "diffusion").mkdir(parents=True)
    schedule._restart(begin(), "diffusion")
    assert list(begin().records.stages) == ["autoencoder.tuning", "latents", "pipeline"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "autoencoder",
        "checkpoints",
        "latents",
        "pipeline",
    ]
    assert not any((tmp_path / "checkpoints").iterdir())


def test_a_kill_while_a_stage_is_forgotten_leaves_it_forgotten(begin, tmp_path, monkeypatch):
    schedule.execute_stages(begin(), *ALL)

    def killed(path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ldmae.run.schedule.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            schedule._restart(begin(), "latents")
    assert not (tmp_path / "latents").exists()
    assert "latents" not in begin().records.stages
    with locked(tmp_path):  # the next start
        assert not list(tmp_path.glob(".writing-*"))


def test_an_input_that_is_not_there_is_named_with_the_command_that_makes_it(begin):
    with pytest.raises(UserError, match=r"has no latents yet .*make it with `ldmae encode`"):
        schedule.execute_stages(begin(), "diffusion")


def test_an_unknown_stage_is_named_with_the_nearest(begin):
    message = r"no stage 'latent' in this run; did you mean 'latents'\?; stages: autoencoder.tuning, latents"
    with pytest.raises(UserError, match=message):
        schedule.select(begin().stages, ["latent"])


def test_the_stages_of_every_kind_read_what_is_made_before_them():
    for kind in ("vmae", "ae"):
        known = {"images"}
        for stage in schedule.stages(load_config("smoke", [f"autoencoder.kind={kind}"])):
            assert set(stage.reads) <= known, stage.name
            known |= set(stage.outputs)
            assert dataclasses.asdict(stage)["settings"] or not stage.costly
