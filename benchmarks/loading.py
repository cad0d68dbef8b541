"""Share of a training step spent waiting for data, as metrics.jsonl of a run has it.

Usage: python benchmarks/loading.py RUN
"""

import json
import sys
from pathlib import Path


def main() -> None:
    if len(sys.argv) != 2:
        print("loading: give a run folder to read its metrics.jsonl")
        return
    shares: dict[str, list[float]] = {}
    for text in (Path(sys.argv[1]) / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        if "data_share" in line:
            shares.setdefault(line["stage"], []).append(line["data_share"])
    print("| stage | median share of the step spent waiting for data |\n| --- | --- |")
    for stage, values in shares.items():
        print(f"| {stage} | {100 * sorted(values)[len(values) // 2]:.2f} % |")


if __name__ == "__main__":
    main()
