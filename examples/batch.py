"""Scores a folder with a running service: a CSV of labels, and the map of every picture that the model is unsure of.

    python examples/batch.py FOLDER --out labels.csv --unsure unsure/ [--url http://127.0.0.1:8000]

`saccade classify` does more without a line of code; this shows what a script of your own looks like.
"""

import argparse
import csv
import os
import sys
from pathlib import Path

from saccade import Client

SURE = 0.6
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--unsure", type=Path, required=True)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    options = parser.parse_args()

    pictures = (path for path in sorted(options.folder.rglob("*")) if path.suffix.lower() in SUFFIXES)
    options.unsure.mkdir(parents=True, exist_ok=True)
    failed = 0
    with (
        Client(options.url, key=os.environ.get("SACCADE_API_KEY") or None) as client,
        options.out.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(["picture", "label", "score", "error"])
        # 16 on their way at a time, answers in the order of the pictures, and never more than 64 in memory
        for path, answer, error in client.classify_many(pictures, concurrency=16, top_k=1):
            if answer is None:
                failed += 1
                table.writerow([path, "", "", error])
                continue
            best = answer.labels[0]
            table.writerow([path, best.label, f"{best.score:.4f}", ""])
            if best.score < SURE:
                name = "-".join(path.relative_to(options.folder).parts)
                answer.overlay().save(options.unsure / f"{name}.jpg")
    print(f"{failed} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
