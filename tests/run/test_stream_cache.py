from functools import partial

import pytest

from ldmae.config import load_config
from ldmae.core.errors import UserError
from ldmae.core.files import read_json
from ldmae.latents.shards import LatentShards
from ldmae.run import evaluate_samples, run_all
from ldmae.run.opening import open_accelerator

from ..pictures import write_shard
from ..serving import Quiet, serving

pytestmark = pytest.mark.usefixtures("blank")


@pytest.fixture
def address(tmp_path):
    """Serves two tar shards of 30 pictures in two classes on the loopback address."""
    folder = tmp_path / "served"
    folder.mkdir()
    for shard in range(2):
        write_shard(folder / f"{shard:03d}.tar", 30, size=20, seed=shard)

    with serving(partial(Quiet, directory=str(folder))) as url:
        yield url


def test_remote_shards_are_streamed_through_every_stage(address, preset, tmp_path):
    def run(*changes):
        settings = [f"data={address}/{{000..001}}.tar", "data.classes=[cat,dog]", "data.val=0.2", *changes]
        settings += ["autoencoder.pretraining.training.micro_batch_size=5", "evaluation.real_images=null"]
        run_all(load_config(str(preset), settings), tmp_path / "run")

    with pytest.raises(UserError, match="404"):
        run(f"data={address}/{{100..101}}.tar")  # which stands in the way of nothing
    run()

    described = read_json(tmp_path / "run" / "data.json")
    assert described["train"] + described["held_out"] == 60
    labels = LatentShards(tmp_path / "run" / "latents").labels()
    assert len(labels) == described["train"]
    assert set(labels.tolist()) == {0, 1}
    names = {result["name"] for result in read_json(tmp_path / "run" / "results.json")["results"]}
    assert {"PSNR", "KID-efficientnet_lite0"} <= names

    for change in ("data.val=0.3", "data.split=test", f"data={address}/{{000..000}}.tar"):
        with pytest.raises(UserError, match="keeps are of another stream: "):
            run(change)

    found = evaluate_samples(str(tmp_path / "run"), [], tmp_path / "figures")
    assert "KID-efficientnet_lite0" in [result.name for result in found]
    assert {result.counts.get("real") for result in found} >= {described["train"]}
    assert (tmp_path / "figures" / "results" / "copies.json").exists()


def test_runs_of_one_program_may_differ_in_precision(tmp_path):
    precisions = []
    for precision in ("no", "bf16", "no"):
        config = load_config("smoke", [f"mixed_precision={precision}"])
        precisions.append(open_accelerator(config, tmp_path).mixed_precision)
    assert precisions == ["no", "bf16", "no"]
