"""Runs: the stages of a run folder, comparisons, and what is done with an autoencoder or pipeline alone."""

from importlib import import_module
from typing import Any

_PLACES = {
    "Run": "run.run",
    "check_run_folder": "loading",
    "compare": "run.comparison",
    "convert_official": "run.convert",
    "convert_to_official": "run.convert",
    "decoder_config": "run.decoder_run",
    "describe_change": "run.decoder_change",
    "describe_comparison": "run.comparison_plan",
    "describe_decoder": "run.decoder_run",
    "describe_plan": "run.plan",
    "describe_results": "run.reporting",
    "describe_standings": "run.schedule",
    "encode_with": "run.external_latents",
    "evaluate_run": "run.commands",
    "evaluate_samples": "run.external_samples",
    "evaluate_with": "run.external_metrics",
    "execute_stages": "run.schedule",
    "is_run_folder": "loading",
    "open_run": "run.schedule",
    "outdated_parts": "loading",
    "refuse_code": "loading",
    "render_report": "report.run",
    "run_all": "run.commands",
    "run_stages": "run.commands",
    "sample_from": "run.sampling",
}
"""Where the functions are, none of which is imported before it is asked for."""

__all__ = [*_PLACES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"ldmae.{_PLACES[name]}"), name)
