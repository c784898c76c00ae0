"""``unbraid bench``: our model beside its rivals."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from unbraid.bench.config import Config

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Measures what is not measured yet, and shows all of it; or renders the page."""
    from unbraid.bench.tables import write_page

    if config.what == "page":
        write_page(Path(config.page), Path(config.output))
        print(config.page)
        return
    _measure(config)


def _measure(config: Config) -> None:
    import tempfile

    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from unbraid.bench.record import Record, surroundings

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    settings = {"model": config.model_name, "rounds": config.rounds, "seconds": config.seconds}
    rivals = None if config.rivals is None else list(config.rivals)
    about = {"benchmark": config.what, "settings": {**settings, "rivals": rivals}}
    record = Record(config.result, {**about, **surroundings(torch.get_num_threads())})
    console = Console(stderr=True, highlight=False, markup=False)
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        cells = importlib.import_module(f"unbraid.bench.{config.what}").cells(config, Path(folder))
        task = progress.add_task("", total=len(cells))
        for cell in cells:
            progress.update(task, description=f"{cell.part} {cell.shape} {cell.dtype}")
            if not record.holds(cell):
                outcomes = cell.measure()
                record.add(cell, outcomes)
                for outcome in outcomes:
                    if outcome.reason:
                        console.print(f"{cell.shape} {cell.dtype}: {outcome.name} not measured: {outcome.reason}")
            progress.advance(task)
    _show(record.content)
    print(record.path)


def _show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from unbraid.bench.tables import notes, tables

    console = Console(highlight=False, markup=False)
    for table in tables(result):
        shown = Table(*table.head, title=table.title)
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for line in notes(result):
        console.print(line, soft_wrap=True)
