"""What glibc's way with large tensors costs on a CPU: the same training step with and without memory reuse.

Usage: python benchmarks/memory_reuse.py
"""

import argparse
import subprocess
import sys
import time

WORK = """
import sys, time, torch
from ldmae.core.device import reuse_freed_memory
from ldmae.perception.features import load_features
if sys.argv[1] == "reuse":
    reuse_freed_memory()
extractor = load_features("efficientnet_lite0")
images = torch.zeros(64, 3, 48, 48, dtype=torch.uint8)
extractor(images)
began = time.perf_counter()
for _ in range(3):
    extractor(images)
print((time.perf_counter() - began) / 3)
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    seconds: dict[str, list[float]] = {"reuse": [], "default": []}
    for _ in range(3):  # in turns: each needs a process of its own
        for name, values in seconds.items():
            command = [sys.executable, "-c", WORK, name]
            values.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            time.sleep(0.1)
    reuse, default = (sorted(values)[1] for values in seconds.values())
    print("| what | with reuse | glibc's default | faster by |\n| --- | --- | --- | --- |")
    print(f"| features of 64 images | {reuse:.2f} s | {default:.2f} s | {default / reuse:.2f} × |")


if __name__ == "__main__":
    main()
