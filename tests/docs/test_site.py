"""The site: its reference is whole, what it quotes is true, and it fetches nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from playwright.sync_api import Browser

import ldmae
from ldmae.cli.main import app
from ldmae.config import Config, load_config, preset_names
from ldmae.config.base import _setting_names
from ldmae.run import describe_plan

from ..scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The hook that writes pages."""
    return load_script(ROOT / "docs" / "hooks" / "reference.py")


# ---- generated pages


def test_every_setting_is_listed_once_with_the_default_that_holds(reference: ModuleType) -> None:
    listed = [setting for group in reference.groups() for setting in group.settings]
    assert sorted(setting.key for setting in listed) == sorted(_setting_names(Config))
    assert all(setting.meaning for setting in listed)
    defaults = {setting.key: setting.default for setting in listed}
    config: Any = Config()
    for key, shown in defaults.items():
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        if key != "comparison.settings":
            read = yaml.safe_load(shown)
            assert read == value or shown == str(value) or read == pytest.approx(value, rel=1e-4), key
    assert defaults["autoencoder.tuning.objective.masking.ratio"] == "0"  # not the masking's own 0.6


def test_every_verb_is_listed_with_all_its_options(reference: ModuleType) -> None:
    page = reference.command_line()

    def verbs(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, child in node.commands.items():
            yield from (
                verbs(child, f"{path} {name}") if hasattr(child, "commands") else [(f"{path} {name}", child)]
            )

    found = list(verbs(typer.main.get_command(app), "ldmae"))
    assert sorted(path for path, _ in found) == sorted(re.findall(r"^## (.+)$", page, re.M))
    for path, command in found:
        section = page.split(f"## {path}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name != "help":
                assert all(flag in section for flag in parameter.opts), (path, parameter.opts)
                assert re.sub(r"\s+", " ", parameter.help or "").replace("|", r"\|") in section


def test_every_preset_is_listed_with_all_its_text(reference: ModuleType) -> None:
    page = reference.presets()
    assert re.findall(r"^## (\S+)$", page, re.M) == preset_names()
    for name in preset_names():
        assert f"ldmae run {name}" in page or f"ldmae compare {name}" in page, name


def test_every_public_name_has_its_docstring_on_a_page(reference: ModuleType) -> None:
    marks = f"{reference.public_names()}\n{reference.conversion_names()}"
    for name in set(ldmae.__all__) - {"__version__"} | set(ldmae.conversion.__all__):
        assert re.search(rf"^::: ldmae\.\S+\.{name}$", marks, re.M), name


def test_every_mark_on_a_page_is_known(reference: ModuleType) -> None:
    marks = [mark for page in PAGES for mark in reference.MARK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(marks) == sorted(reference.GENERATED)


# ---- what pages quote


def test_the_quoted_dry_run_is_what_the_command_prints() -> None:
    printed = describe_plan(load_config("imagenet-256"), Path("runs/imagenet-256"))
    quoted = (ROOT / "docs" / "how-to" / "dry-run.txt").read_text(encoding="utf-8")
    assert quoted.splitlines() == [line for line in printed.splitlines() if line.startswith("#")]


def test_the_paper_figures_are_those_that_the_report_has() -> None:
    from ldmae.report import paper

    page = (ROOT / "docs" / "how-to" / "reproduce-the-paper.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"\d+\.\d+", page))
    source = Path(paper.__file__).read_text(encoding="utf-8")
    known = {float(number) for number in re.findall(r"\d+\.\d+", source)}
    for line in page.splitlines():
        if re.match(r"\| (\*\*)?(AE|DAE|VAE|SD-VAE|VMAE|MSE only|\+ L_)", line):
            for number in re.findall(r"(?<=[| *])\d+\.\d+(?=[ *|])", line):
                assert float(number) in known, (number, line)
    assert len(numbers) > 60


def test_the_figures_beside_the_pictures_are_those_of_the_run_that_was_drawn() -> None:
    """After drawing anew, what fails here tells which numbers on the page to change."""
    page = (ROOT / "docs" / "concepts" / "three-properties.md").read_text(encoding="utf-8")
    figures = json.loads((ROOT / "docs" / "pictures" / "figures.json").read_text(encoding="utf-8"))
    for level in ("object", "part", "pattern"):
        names = f"sigma2({level})", f"sigma2({level}) at random", f"rho({level})"
        cells = " | ".join(f"{figures[name]:.3f}" for name in names)
        assert f"| {level} | {cells} |" in page
    auc, plain = figures["ST-LPIPS-alex-AUC"], figures["ST-LPIPS-alex(eps=0)"]
    named = {name: figures[name] for name in ("PSNR", "SSIM", "ST-LPIPS-alex", "linear-probe-accuracy")}
    for text in (
        f"{auc:.3f} here; at ε = 0 the distance is {plain:.3f}",
        f"{named['linear-probe-accuracy'] * 100:.0f} % of held-out images",
        f"PSNR {named['PSNR']:.1f} dB, SSIM {named['SSIM']:.3f}, ST-LPIPS-alex {named['ST-LPIPS-alex']:.3f}",
    ):
        assert text in re.sub(r"\s+", " ", page), text


@pytest.mark.parametrize(
    "page", ["README.md", "docs/index.md", "docs/results/README.md", "docs/results/photographs.md"]
)
def test_results_in_brief_are_those_of_the_tables_and_of_the_paper(page: str) -> None:
    from ldmae.report import paper

    results, names = ROOT / "docs" / "results", ("compare-photos", "arena-emoji", "arena-photos")
    tables = [(results / name / "tables.md").read_text(encoding="utf-8") for name in names]
    printed = Path(paper.__file__).read_text(encoding="utf-8")
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:AE|DAE|VAE|VMAE|SD-VAE)\b[^|]*\|.+$", text, re.M)
    assert len(rows) >= 4
    for row in rows:
        sources = [printed] if ", paper" in row or "83.8 M" in row or "10.8 M" in row else tables
        values = re.findall(r"\d+\.\d+", re.sub(r"\(https[^)]*\)|\d+\.\d M", "", row))
        shown = [rf"(?<![\d.]){re.escape(value)}(?!\d)" for value in values]
        assert any(all(re.search(value, table) for value in shown) for table in sources), row


def test_the_metrics_of_the_shipped_model_are_those_that_were_measured() -> None:
    measured = json.loads((ldmae.pretrained("emoji") / "figures.json").read_text(encoding="utf-8"))
    table = re.search(r"```text\n(L1 .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    assert table is not None
    for line in table[1].splitlines():
        name, value = line.split()[:2]
        assert f"{measured[f'reconstruction/{name}']:.4g}" == value, line
    zoo = (ROOT / "docs" / "results" / "model-zoo.md").read_text(encoding="utf-8")
    assert f"`copies` is {measured['copies/copies']:.3f}" in zoo


def test_metrics_agree_with_the_packages_that_define_them() -> None:
    module = load_script(ROOT / "tools" / "compare_metrics.py")
    page = (ROOT / "docs" / "reference" / "metrics-agreement.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| ([A-Z][\w-]+|precision|recall) \| (\S+) \|", page, re.M))
    rows = [*module.image_rows(), *module.feature_rows()]
    assert [name for name, *_ in rows] == list(shown)
    for name, ours, theirs, _ in rows:
        assert ours == pytest.approx(theirs, rel=1e-5), name
        assert float(shown[name]) == pytest.approx(ours, rel=1e-3), name


def test_every_message_that_is_explained_is_one_that_the_package_gives() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    page = (ROOT / "docs" / "help" / "errors.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)`", page, re.M)
    assert len(messages) > 15
    for message in messages:
        for part in message.split("…"):
            assert part.strip(" ;,") in joined, (part, message)


def test_the_readme_is_short_and_links_to_pages_of_the_site() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 150
    assert readme.index("pretrained:emoji") < readme.index("ldmae run")


def test_examples_are_included_and_not_copied() -> None:
    included = {
        found
        for page in PAGES
        for found in re.findall(r'--8<-- "(examples/[^":]+)', page.read_text(encoding="utf-8"))
    }
    run_not_read = {
        *("plan_costs.py", "draw_three_properties.py"),
        *("prepare_imagenet.py", "prepare_celebahq.py"),
    }
    shown = {path.name for path in (ROOT / "examples").glob("*.py")} - run_not_read
    assert shown <= {Path(found).name for found in included}
    assert {path.name for path in (ROOT / "examples" / "extend").glob("*.py")} <= {
        Path(f).name for f in included
    }


# ---- the project's own files


def test_changelog_and_citation_bear_the_version() -> None:
    version = ldmae.__version__
    heading = "Unreleased" if ".dev" in version else version
    assert f"## [{heading}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", version)
    assert {"message", "title", "authors"} <= set(citation)  # what the format requires
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Lee", "Shin", "Choi", "Lee"]
    assert "2507.09984" in paper["url"]
    assert citation["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"])
def test_links_to_files_of_the_project_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), target


# ---- the built site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly as by `make docs`."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src="?(https?:[^"\s>]+)|<link[^>]+href="?(https?:[^"\s>]+)"""
    )
    for page in site.rglob("*.html"):
        assert not loads.findall(page.read_text(encoding="utf-8")), page


def test_no_page_is_left_with_a_mark_or_an_unread_include(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "--8<--" not in text, page
        assert "<!-- generated" not in text, page
        assert "--8&lt;--" not in text, page


def test_a_reader_opens_the_site_from_its_folder_and_searches(site: Path, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto((site / "index.html").as_uri())
    page.get_by_placeholder("Search").first.click()
    page.keyboard.type("micro_batch_size")
    page.locator(".md-search-result__link").first.wait_for(timeout=20_000)
    page.locator(".md-search-result__link").first.click()
    page.wait_for_load_state()
    assert page.url != (site / "index.html").as_uri()
    page.goto((site / "concepts" / "three-properties.html").as_uri())
    broken = "images => images.filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"
    assert page.locator("article img").count() == 6
    assert page.locator("article img").evaluate_all(broken) == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # a phone scrolls down only
    page.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    assert wrong == []
