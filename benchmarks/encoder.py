"""The encoder beside transformers' eager one, with the same weights: ``python benchmarks/encoder.py``.

Outputs must agree before anything is timed. Rounds alternate between the contestants; printed are the medians in
milliseconds, and transformers' over each of ours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from typing import Literal

import torch
import transformers

import unbraid
from unbraid.attention import Backend

Contestant = Backend | Literal["transformers"]
SHAPES = [(1, 32), (1, 128), (8, 128), (1, 512), (4, 512)]
BACKENDS: list[Backend] = ["sdpa", "native"]
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.2}
"""The largest difference of a hidden state to be taken for agreement."""


@torch.inference_mode()
def main() -> None:
    """Prints a row for each dtype and shape."""
    ours = unbraid.Deberta(unbraid.preset("deberta-v3-base", vocab_size=5000)).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.AutoModel.from_pretrained(folder).eval()

    def run(contestant: Contestant, ids: torch.Tensor) -> torch.Tensor:
        mask = torch.ones_like(ids)
        if contestant == "transformers":
            return theirs(ids, attention_mask=mask).last_hidden_state
        ours.encoder.backend = contestant
        return ours(ids, mask).last_hidden_state

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    for dtype, allowed in ALLOWED.items():
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        for shape in SHAPES:
            ids = torch.randint(5, 5000, shape)
            expected = run("transformers", ids)
            for backend in BACKENDS:
                difference = float((run(backend, ids) - expected).abs().max())
                if difference > allowed:
                    raise SystemExit(f"{backend} differs by {difference:.2g} at {shape} in {dtype}; nothing is timed.")
            times: dict[Contestant, list[float]] = {"transformers": [], **{name: [] for name in BACKENDS}}
            for _ in range(5 if ids.numel() < 2000 else 3):
                for name, seconds in times.items():
                    began = time.perf_counter()
                    run(name, ids)
                    seconds.append(time.perf_counter() - began)
            medians = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
            shown = "  ".join(f"{name} {median:.0f} ms" for name, median in medians.items())
            ratios = "  ".join(f"{medians['transformers'] / medians[name]:.2f} over {name}" for name in BACKENDS)
            print(f"{dtype}  {shape[0]}x{shape[1]}  {shown}  {ratios}", flush=True)


if __name__ == "__main__":
    main()
