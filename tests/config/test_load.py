"""Typed settings: presets, YAML files, dotted overrides."""

import math
import re
import time

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from ldmae.config import Config, as_dict, json_schema, load_config, preset_names, preset_text, save_config
from ldmae.config.base import group_of
from ldmae.config.load import _RENAMED
from ldmae.core.errors import UserError

# ---- the schema


def groups(kind=Config):
    yield kind
    for field in kind.model_fields.values():
        if (group := group_of(field)) is not None:
            yield from groups(group)


def test_every_setting_is_documented_below_it():
    bare = [
        f"{kind.__name__}.{name}"
        for kind in groups()
        for name, field in kind.model_fields.items()
        if not field.description
    ]
    assert not bare


def test_settings_are_frozen_and_named_by_keyword():
    for kind in set(groups()):
        settings = kind()
        with pytest.raises(ValidationError, match="frozen"):
            setattr(settings, next(iter(kind.model_fields)), None)
        with pytest.raises(TypeError):
            kind(None)


def test_defaults_are_settings_that_may_be_set():
    assert Config(**as_dict(Config())) == Config()


# ---- presets and files


def write(path, **settings):
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def test_a_file_a_mapping_and_overrides_say_the_same(tmp_path):
    settings = {"data": "digits", "image_size": 32, "autoencoder": {"model": {"patch_size": 4}}}
    expected = load_config(write(tmp_path / "a.yaml", **settings))
    assert load_config(settings) == expected
    assert expected.data.source == "digits"
    overrides = ["data=digits", "image_size=32", "autoencoder.model.patch_size=4"]
    assert load_config(write(tmp_path / "empty.yaml"), overrides) == expected


def test_a_file_builds_on_a_preset_or_on_a_file_beside_it(tmp_path):
    write(tmp_path / "mine.yaml", base="smoke", seed=7)
    file = write(tmp_path / "other.yaml", base="mine.yaml", diffusion={"training": {"steps": 3}})
    config, smoke = load_config(file), load_config("smoke")
    assert (config.seed, config.diffusion.training.steps) == (7, 3)
    assert config.autoencoder == smoke.autoencoder
    assert config.diffusion.model == smoke.diffusion.model
    assert load_config(file, ["seed=8"]).seed == 8


def test_presets_based_on_each_other_in_a_circle_are_refused(tmp_path):
    file = write(tmp_path / "a.yaml", base="b.yaml")
    write(tmp_path / "b.yaml", base=f"../{tmp_path.name}/a.yaml")
    with pytest.raises(UserError, match=r"in a circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_config(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", b"data: [1", r"a\.yaml is not YAML"),
        ("a.yaml", b"- 1\n- 2", r"a\.yaml must hold a mapping of settings, got list"),
        ("a.yaml", b"\xff\xfe\x00", r"a\.yaml is not YAML"),
        ("a.yaml", b"data: {val: '0.1'}\nseed: 1\ndata: {source: emoji}", r"a\.yaml sets 'data' twice"),
        ("a.yaml", b"data: {val: '0.1', val: '0.2'}", r"a\.yaml sets 'val' twice"),
        ("a.yaml", b"base: [smoke]", "base must be a preset or a YAML file"),
        ("a.yaml", b"base: smok", "no preset or YAML file 'smok'; did you mean 'smoke'"),
        ("a.yaml", b"image_sise: 3", "unknown setting image_sise; did you mean 'image_size'"),
        ("a.txt", b"seed: 1", "no preset or YAML file"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / name))


def test_an_unknown_preset_names_the_nearest_and_all():
    told = r"'smoek'; did you mean 'smoke'\?; presets: smoke, finetune, digits, emoji, "
    with pytest.raises(UserError, match=told):
        load_config("smoek")


def test_saved_settings_load_as_they_were(tmp_path):
    overrides = [
        "data=odd ${path}=/{000..012}.tar",
        "autoencoder.source=official:C: {x} ${y}",
        "diffusion.training.ema_decay=null",
        "diffusion.training.optimizer.learning_rate=1e-5",
        "data.classes=[ä, '1', 'no']",
        "sampling.guidance_interval=[0.1, 1]",
    ]
    config = load_config("smoke", overrides)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert as_dict(config)["data"]["source"] == "odd ${path}=/{000..012}.tar"


# ---- overrides


def test_overrides_set_values_of_every_type():
    config = load_config(
        "smoke",
        [
            "diffusion.training.steps=2000",
            "diffusion.training.optimizer.learning_rate=2e-4",
            "autoencoder.pretraining.augment.crop_scale=[0.5,1]",
            "latents={flip: true, dtype: float16}",
            "autoencoder.tuning.enabled=false",
            "evaluation.real_images=null",
            "data.val=0.1",
            "seed=1",
            "seed=2",
        ],
    )
    assert config.diffusion.training.steps == 2000
    assert config.diffusion.training.optimizer.learning_rate == 2e-4
    assert config.autoencoder.pretraining.augment.crop_scale == [0.5, 1.0]
    assert (config.latents.flip, config.latents.dtype, config.latents.shard_size) == (True, "float16", 2000)
    assert config.autoencoder.tuning.enabled is False
    assert config.evaluation.real_images is None
    assert config.data.val == "0.1"
    assert config.seed == 2


@pytest.mark.parametrize(
    "path",
    ["a b", "k=v/x=y", "{000..012}.tar", "a,b[1]", "it's", "${HOME}/x", "#x", "null", "1e3", "~/x: y", ""],
)
def test_names_of_paths_are_taken_as_they_are(path):
    config = load_config("smoke", [f"data={path}", f"data.val={path}"])
    assert (config.data.source, config.data.val) == (path, path)
    assert load_config("smoke", [f"data.source={path}"]) == load_config("smoke", [f"data={path}"])
    if path != "null":
        assert load_config("smoke", [f"autoencoder.init={path}"]).autoencoder.init == path
        assert load_config("smoke", [f"diffusion.init={path}"]).diffusion.init == path
        assert load_config("smoke", [f"evaluation.masks={path}"]).evaluation.masks == path


def test_null_takes_a_source_back(tmp_path):
    file = write(tmp_path / "a.yaml", base="smoke", autoencoder={"source": "x/y"})
    assert load_config(file).autoencoder.source == "x/y"
    assert load_config(file, ["autoencoder.source=null"]).autoencoder.source is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffusion.training.steps", "an override is key=value, got 'diffusion.training.steps'"),
        ("=5", "unknown setting "),
        ("a=[1", r"the override 'a=\[1' is not YAML"),
        ("diffusion.training.step=3", "did you mean 'diffusion.training.steps'"),
        ("diffusion.optimizer.learning_rate=1", "did you mean 'diffusion.training.optimizer.learning_rate'"),
        ("difusion.training.steps=1", "did you mean 'diffusion.training.steps'"),
        ("latents.fingerpint=skip", "did you mean 'latents.fingerprint'"),
        ("qqqqq=1", "unknown setting qqqqq; see .*--dry-run"),
        ("diffusion=3", "diffusion is a group, got 3; set one of its keys: diffusion.kind"),
        ("autoencoder.tuning=null", "autoencoder.tuning is a group, got None"),
        ("diffusion.training.steps=abc", "diffusion.training.steps must be a valid integer.*got 'abc'"),
        ("diffusion.training.steps=1.5", "diffusion.training.steps must be a valid integer.*got 1.5"),
        ("diffusion.training.steps.x=1", "diffusion.training.steps must be a valid integer"),
        ("seed=null", "seed must be a valid integer, got None"),
        ("seed=true", "seed must be a number, got True"),
        ("data.split=true", "data.split must be a valid string, got True"),
        ("sampling.guidance_interval=3", "sampling.guidance_interval must be a valid list, got 3"),
        ("sampling.guidance_interval=[0,b]", r"sampling.guidance_interval\[1\] must be a valid number.*'b'"),
        (
            "autoencoder.pretraining.augment.crop_scale=[1]",
            r"crop_scale must have at least 2 items.*got \[1\]\. Share of the image",
        ),
    ],
)
def test_a_slip_in_an_override_is_named_with_the_next_move(override, message):
    with pytest.raises(UserError, match=message):
        load_config("smoke", [override])


# ---- what does not go together


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image_size=33", r"image_size=33 must be a multiple of .*patch_size=4; take image_size=32"),
        ("image_size=0", "image_size must be at least 1, got 0"),
        ("autoencoder.pretraining.image_size=15", r"pretraining\.image_size=15 .* take .*size=16"),
        ("autoencoder.model.patch_size=0", r"autoencoder\.model\.patch_size must be at least 1, got 0"),
        ("autoencoder.model.latent_channels=-1", r"latent_channels must be at least 1"),
        (
            "autoencoder.model.decoder_num_attention_heads=3",
            r"decoder_hidden_size=64 .*decoder_num_attention_heads=3",
        ),
        ("autoencoder.model.encoder_hidden_size=66", r"encoder_hidden_size=66 must be a multiple of 4"),
        (
            "diffusion.model.patch_size=3",
            r"8 cells a side, which diffusion\.model\.patch_size=3 does not divide; take image_size=36",
        ),
        ("diffusion.model.num_layers=0", r"diffusion\.model\.num_layers must be at least 1"),
        ("diffusion.model.attention_head_dim=15", "multiple of 4 .* take 16"),
        ("diffusion.model.mlp_ratio=0.02", "must leave hidden units"),
        ("diffusion.model.class_dropout_prob=0", "guidance needs .*class_dropout_prob above 0"),
        ("mixed_precision=fp8", "mixed_precision must be auto, no, bf16 or fp16, got 'fp8'"),
        ("device=tpu", "device must be auto, cpu, cuda or mps, got 'tpu'"),
        ("tracker=mlflow", "tracker must be tensorboard, wandb or none, got 'mlflow'"),
        ("autoencoder.pretraining.objective.masking.ratio=1", "masking.ratio"),
        ("diffusion.training.optimizer.schedule=linear", "optimizer.schedule must be constant or cosine"),
        ("data.max_unreadable=2", "data.max_unreadable"),
        ("sampling.guidance_interval=[]", r"guidance_interval must have at least 2 items"),
        ("sampling.timestep_shift=-1", "timestep_shift must be at least 0, got -1"),
        (
            "autoencoder.tuning.objective.spectrum_weight=0.1",
            r"tuning\.objective\.spectrum_weight=0\.1 does nothing while .*freeze_encoder=true; set it in",
        ),
        ("diffusion.training.validate_every=5", "diffusion.training.validate_every is for autoencoders"),
        ("dry_run=true", "dry_run is no setting; --dry-run is an option"),
        ("diffusion.options.width=8", "diffusion.options are for a class of yours; kind=lightningdit reads"),
        ("autoencoder.baseline.network=vti", "network must be conv or vit, got 'vti'; did you mean 'vit'"),
        ("autoencoder.pretraining.objective.alignment=dinov2", "alignment must .*'dinov2'; did you mean"),
        # a number is told with its bound
        ("autoencoder.pretraining.objective.prior_std=.nan", "prior_std must be a finite number, got nan"),
        ("diffusion.training.optimizer.gradient_clip=.inf", "gradient_clip must be a finite number, got inf"),
        ("diffusion.model.class_dropout_prob=3", r"model\.class_dropout_prob must be below 1, got 3"),
        ("autoencoder.tuning.augment.crop_ratio=[.5,2000]", r"\[1\] must be at most 1,000, got 2000"),
        ("diffusion.training.steps=1000000000000000", r"training\.steps must be at most 1,000,000,000"),
        ("diffusion.model.num_layers=1000000000000000", r"num_layers must be at most 1,000"),
        ("diffusion.training.num_workers=1000000000000000", r"training\.num_workers must be at most 1,024"),
        ("latents.batch_size=1000000000000000", r"latents\.batch_size must be at most 1,000,000"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_runs(override, message):
    with pytest.raises(UserError, match=message):
        load_config("smoke", [override])


def test_an_autoencoder_is_taken_as_it_is_or_trained_on_and_not_both():
    with pytest.raises(UserError, match=r"source is taken as it is, .*autoencoder\.init; set one to null"):
        load_config("finetune", ["autoencoder.source=runs/mine"])


@pytest.mark.parametrize("stage", ["pretraining", "tuning"])
def test_a_discriminator_too_deep_for_the_images_is_refused_before_anything_runs(stage):
    overrides = [f"autoencoder.{stage}.objective.adversarial_weight=0.5"]
    assert load_config("smoke", overrides)
    with pytest.raises(
        UserError, match=rf"{stage}\.discriminator_layers=4 needs images of at least 48 px, got 32"
    ):
        load_config("smoke", [*overrides, f"autoencoder.{stage}.discriminator_layers=4"])


def test_a_foreign_autoencoder_brings_its_own_patches():
    config = load_config("smoke", ["autoencoder.source=x/y", "image_size=33"])
    assert config.image_size == 33


def test_a_bare_no_turns_mixed_precision_off(tmp_path):
    assert load_config("smoke", ["mixed_precision=no"]).mixed_precision == "no"
    file = tmp_path / "mine.yaml"
    file.write_text("base: smoke\nmixed_precision: no\n")
    config = load_config(str(file))
    assert config.mixed_precision == "no"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


# ---- damage


@pytest.mark.parametrize(
    "text",
    [
        f"seed: {'9' * 5000}",
        f"seed: 0x{'f' * 5000}",
        "seed: !!int x",
        "seed: !!timestamp x",
        "data: {source: &a [*a]}",
        "data: " + "[" * 1000,
        "data: '\\",
        'data: "\\ud800"',
        f"base: {'a' * 300}.yaml",
        "seed: ${oc.env:HOME}",
        "tracker: ${${seed}:HOME}",
        "comparison: {autoencoders: ['${seed}${seed}${seed}']}",
        "a: &a [x, x]\n" + "".join(f"a{i}: &a{i} [{'*a, ' * 9}*a]\n" for i in range(3)) + "b: [*a2, *a2]",
    ],
)
def test_settings_that_no_parser_expects_end_in_a_user_error(tmp_path, text):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        load_config(str(tmp_path / "settings.yaml"))
    assert len(str(told.value)) < 1500


@pytest.mark.parametrize(
    "value", ["[=", "!!int x", "!!timestamp x", "9" * 5000, "&a [*a]", "[" * 1000, "\ud800", "{"]
)
def test_overrides_that_no_parser_expects_end_in_a_user_error(value):
    with pytest.raises(UserError):
        load_config("smoke", [f"seed={value}"])


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_of_thousands_of_digits_is_out_of_range(number):
    with pytest.raises(UserError, match=r"is out of range|at most 64 are allowed") as told:
        load_config("smoke", [f"seed={number}"])
    assert "sys." not in str(told.value)


def test_anchors_that_stand_for_gigabytes_are_refused_at_once(tmp_path):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    (tmp_path / "settings.yaml").write_text("\n".join(lines))
    began = time.process_time()
    with pytest.raises(UserError, match="holds more than 200,000 values"):
        load_config(str(tmp_path / "settings.yaml"))
    assert time.process_time() - began < 2


def test_settings_refer_to_settings_and_to_nothing_else(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("base: smoke\nseed: 7\nevaluation: {seed: '${seed}'}\n")
    assert load_config(str(path)).evaluation.seed == 7
    path.write_text("base: smoke\ndata: '${oc.env:HOME}/images'\n")
    with pytest.raises(UserError, match=r"settings can refer to other settings only, as \$\{image_size\}"):
        load_config(str(path))


# ---- ranges


def numbers_of(kind=Config):
    """Yields the settings that are numbers, or lists of some: class, name, whether it is a list."""
    for group in groups(kind):
        for name, field in group.model_fields.items():
            shown = str(field.annotation)
            if group_of(field) is None and re.search(r"\b(int|float)\b", shown):
                yield group, name, "list[" in shown


def test_every_number_has_its_range_with_two_ends():
    schema = Config.model_json_schema()
    kinds = {"Config": schema, **schema["$defs"]}
    found = 0
    for name, kind in kinds.items():
        for key, field in kind.get("properties", {}).items():
            options = [field, *field.get("anyOf", [])]
            options += [option["items"] for option in options if "items" in option]
            for option in options:
                if option.get("type") in ("integer", "number"):
                    found += 1
                    assert {"minimum", "exclusiveMinimum"} & set(option), f"{name}.{key}"
                    assert {"maximum", "exclusiveMaximum"} & set(option), f"{name}.{key}"
    assert found > 90


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e300, 10**31, True])
def test_no_number_may_be_nan_infinite_or_beyond_all_measure(value):
    for group, name, several in set(numbers_of()):
        with pytest.raises(UserError, match=rf"{name}(\[0\])?(:| must be) "):
            group(**{name: [value, value] if several else value})


# ---- renamed settings


@pytest.mark.parametrize("key", _RENAMED.values())
def test_a_renamed_setting_works_under_its_old_name_with_a_warning(key, tmp_path):
    (group, old), value = next(names for names, now in _RENAMED.items() if now == key), None
    value = [0.1, 0.2] if key.endswith("betas") else 0.1
    file = write(tmp_path / "a.yaml", base="smoke", diffusion={"training": {group: {old: value}}})
    new = f"diffusion.training.{group}.{key}"
    with pytest.warns(
        FutureWarning, match=rf"diffusion\.training\.{group}\.{old} is now {new}; the old name works"
    ):
        assert load_config(file) == load_config("smoke", [f"{new}={value}"])
    with pytest.warns(FutureWarning):
        assert load_config("smoke", [f"diffusion.training.{group}.{old}={value}"]) == load_config(file)


# ---- the JSON schema


def test_the_json_schema_accepts_every_preset_and_refuses_slips():
    schema = json_schema()
    for name in preset_names():
        jsonschema.validate(yaml.safe_load(preset_text(name).replace("1e", "1.0e")), schema)
    for slip in ({"image_sise": 3}, {"image_size": 0}, {"latents": {"dtype": "float8"}}, {"diffusion": 3}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(slip, schema)
    learning_rate = schema["$defs"]["OptimizerConfig"]["properties"]["learning_rate"]
    assert learning_rate["description"].startswith("Peak rate")
    assert learning_rate["default"] == 1e-4


@pytest.mark.parametrize("source", ["pretrained:emoji", "official:vmae.pth"])
def test_weights_that_settings_name_are_no_code(source):
    named = [f"autoencoder.source={source}", f"diffusion.init={source}"]
    assert load_config("smoke", named).code == []
    assert load_config("smoke", ["autoencoder.source=mine.module:Name"]).code == ["mine.module:Name"]
