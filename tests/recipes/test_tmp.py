import importlib.util
from pathlib import Path

import pytest

s = importlib.util.spec_from_file_location("tp", Path(__file__).with_name("test_processes.py"))
tp = importlib.util.module_from_spec(s)
s.loader.exec_module(tp)


@pytest.mark.parametrize(
    "extra",
    [
        ["FLAT"],
        ["autoencoder.tuning.freeze_encoder=false"],
        ["autoencoder.tuning.enabled=false", "autoencoder.model.smooth_output=false"],
        [
            "diffusion.training.batch_size=7",
            "autoencoder.pretraining.training.batch_size=5",
            "autoencoder.pretraining.training.micro_batch_size=1",
        ],
        ["mixed_precision=bf16"],
    ],
)
def test_v(ldmae, preset, pictures, tmp_path, extra):
    if extra == ["FLAT"]:
        extra = [f"data={pictures / 'bars'}"]
    s1 = ldmae.start("run", preset, *extra, "--out", tmp_path / "a")
    c = s1.wait()
    print(s1.output)
    assert c == 0
    s = tp.start_two(ldmae, "run", preset, *extra, "--out", tmp_path / "b")
    codes = [p.wait(60) for p in s]
    print(s[0].output, s[1].output)
    assert codes == [0, 0]
    tp.assert_same(tmp_path / "a", tmp_path / "b")
