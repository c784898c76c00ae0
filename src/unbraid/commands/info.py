"""``unbraid info``: what runs here, and why."""

from __future__ import annotations

from unbraid.settings import settings


@settings
class Config:
    """Shows versions, processor and threads, which attention backend runs here and why, and the models that came along.

    Builds the native kernel if that has not been done.
    """


INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve")


def run(config: Config) -> None:  # noqa: ARG001 -- every verb is called with its options
    """Prints a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts().items():
        table.add_row(name, value)
    Console(markup=False, highlight=False, emoji=False).print(table)


def facts() -> dict[str, str]:
    """What the table says, by the names of its rows."""
    import platform
    import warnings

    import torch

    from unbraid import __version__
    from unbraid.attention.choice import SlowAttentionWarning, choose
    from unbraid.hub import SHIPPED
    from unbraid.native import build
    from unbraid.packing import Packing

    packing = Packing.from_lengths([1])
    chosen = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlowAttentionWarning)  # the reason is shown in its place
        for dtype in (torch.float32, torch.bfloat16):
            name, reason = choose(torch.zeros(1, 1, 1, dtype=dtype), packing, packing)
            chosen[f"attention, {str(dtype).removeprefix('torch.')}"] = f"{name}: {reason}"
    kernel = build.load()
    able = build.features()
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "unbraid": __version__,
        "torch": torch.__version__,
        "Python": f"{platform.python_version()}, {platform.system()}",
        "processor": build.processor().get("model name") or platform.machine(),
        "instruction sets": ", ".join(name for name in INSTRUCTION_SETS if name in able) or "unknown",
        "threads": str(torch.get_num_threads()),
        "GPU": ", ".join(gpus) or "none",
        **chosen,
        "native kernel": str(kernel.path or "none"),
        "kernel cache": str(build.cache_folder() or "none"),
        "models within": ", ".join(SHIPPED),
    }
