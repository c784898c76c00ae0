"""What benchmarks/tasks.py has measured so far: one file, from which it goes on wherever the file is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from task_runs import Finished, Run

from unbraid.errors import InputError
from unbraid.files import replace_text


@dataclasses.dataclass
class Record:
    """Models, scores of the linear baselines, and finished runs; written after every change.

    Attributes:
        path: of the file.
        models: name -> folder or name on the hub, or scratch: before such.
        linear: task -> number of examples -> percent.
        finished: by their runs, in the order in which they ended.
    """

    path: Path
    models: dict[str, str]
    linear: dict[str, dict[int, float]]
    finished: dict[Run, Finished]

    @classmethod
    def read(cls, path: Path) -> Record:
        """What a file holds; nothing if there is none.

        Raises:
            InputError: it is no such file.
        """
        if not path.is_file():
            return cls(path, {}, {}, {})
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            linear = {
                task: {int(count): percent for count, percent in by_count.items()}
                for task, by_count in told["linear"].items()
            }
            finished = [_finished(**each) for each in told["runs"]]
            return cls(path, dict(told["models"]), linear, {each.run: each for each in finished})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is no record of this benchmark ({error!r}): move it away.") from error

    def name(self, models: Mapping[str, str]) -> None:
        """Holds names of models to what they stood for in earlier pieces, whose scores are only read.

        Raises:
            InputError: a name stands for another model now.
        """
        for name, model in models.items():
            if (former := self.models.setdefault(name, model)) != model:
                raise InputError(f"in {self.path.parent}, {name} is {former} and not {model}: give it another name.")
        self._write()

    def add_linear(self, task: str, examples: int, percent: float) -> None:
        """Notes the score of a linear baseline."""
        self.linear.setdefault(task, {})[examples] = percent
        self._write()

    def add(self, finished: Finished) -> None:
        """Notes a run."""
        self.finished[finished.run] = finished
        self._write()

    def _write(self) -> None:
        told = {
            "models": self.models,
            "linear": self.linear,
            "runs": [_told(each) for each in self.finished.values()],
        }
        replace_text(self.path, json.dumps(told, indent=1))


def _told(finished: Finished) -> dict[str, Any]:
    fields = dataclasses.asdict(finished)
    return {**fields.pop("run"), **fields}


def _finished(*, score: float, minutes: float, precision: str, **run: Any) -> Finished:
    return Finished(Run(**run), score, minutes, precision)
