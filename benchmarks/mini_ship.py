"""From a run of recipes/pretrain-mini-en.toml to the folder in the package.

python benchmarks/mini_ship.py RUN FOLDER

Writes the weights with the lowest held-out loss so far in float16, the tokenizer, the resolved recipe and the run's
log; the model card is written by hand.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from unbraid import DebertaForMaskedLM, Tokenizer


def main(run: Path, folder: Path) -> None:
    """Writes the folder."""
    DebertaForMaskedLM.from_pretrained(run / "best").save_pretrained(folder, torch.float16)
    Tokenizer.from_pretrained(run / "best").save_pretrained(folder)
    shutil.copy(run / "metrics.jsonl", folder)
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    recipe["corpus"]["path"] = [Path(path).name for path in recipe["corpus"]["path"]]
    recipe["tokenizer"] = Path(recipe["tokenizer"]).name
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
