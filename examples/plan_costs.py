"""Print what the trainings of presets cost on a number of GPUs, as `ldmae run PRESET --dry-run` counts it.

python examples/plan_costs.py imagenet-256 celebahq-256 --devices 8 --teraflops 100
"""

import argparse
import sys
from pathlib import Path

from ldmae.cli.output import run_app
from ldmae.config import load_config
from ldmae.run.initial_diffusion import with_initial_weights
from ldmae.run.plan import plan_trainings


# --8<-- [start:plan]
def rows(preset: str, devices: int, teraflops: float) -> list[tuple[str, ...]]:
    """Returns a row a training: name, million parameters, steps, PFLOP, GiB a device, hours."""
    config, initial = with_initial_weights(load_config(preset), Path("runs", Path(preset).stem))
    plans = plan_trainings(config, processes=devices, initial=initial)
    return [
        (
            preset,
            plan.stage,
            f"{plan.parameters / 1e6:.1f} M",
            f"{plan.steps:,} × {plan.batch_size:,}",
            f"{plan.flops / 1e15:,.4g}" if plan.flops < 1e18 else f"{plan.flops / 1e15:,.0f}",
            f"{plan.memory / 2**30:.1f} GiB",
            f"{plan.flops / (devices * teraflops * 1e12) / 3600:.2f} h",
        )
        for plan in plans
    ]


# --8<-- [end:plan]


def main(arguments: list[str] | None = None) -> list[str]:
    """Prints a Markdown table and returns its lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=["smoke"])
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument(
        "--teraflops", type=float, default=100.0, help="10¹² operations a second that ONE device really does"
    )
    options = parser.parse_args(arguments)
    if options.devices < 1 or not options.teraflops > 0:
        parser.error("--devices and --teraflops must be positive")
    lines = ["| preset | training | parameters | steps | PFLOP | memory a device | time |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for preset in options.presets:
        for row in rows(preset, options.devices, options.teraflops):
            lines.append("| " + " | ".join(row) + " |")
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    sys.exit(run_app(main))
