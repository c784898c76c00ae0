"""The text that unbraid-mini-en reads, and what is kept from it: ``python benchmarks/mini_text.py DATA OUTPUT``.

DATA holds enwik8.txt.gz (articles apart by an empty line), wiki_leads_2026.txt.gz (an article a line) and
austen.txt.gz (a paragraph a line). OUTPUT gets wikipedia.txt.gz and novels.txt.gz to train on, and of each a
``*.heldout.txt.gz``: one article in fifty and one of twenty pieces of the novels, of twenty paragraphs each, chosen by
a hash of their text.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

HELD_OUT = {"wikipedia": 50, "novels": 20}
"""One document in so many is held out."""
PARAGRAPHS = 20
"""In a document of the novels."""


def read(path: Path) -> str:
    """The text of a gzip file."""
    return gzip.decompress(path.read_bytes()).decode()


def write(path: Path, documents: Iterable[str]) -> None:
    """Writes documents with an empty line after each, the same bytes every time."""
    text = "".join(f"{document}\n\n" for document in documents)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def is_held_out(document: str, one_in: int) -> bool:
    """Whether a document is kept from training."""
    return int.from_bytes(hashlib.sha256(document.encode()).digest()[:8]) % one_in == 0


def main(data: Path, output: Path) -> None:
    """Reads the three files and writes the four."""
    articles = [article.strip() for article in read(data / "enwik8.txt.gz").split("\n\n") if article.strip()]
    leads = read(data / "wiki_leads_2026.txt.gz").splitlines()
    paragraphs = read(data / "austen.txt.gz").splitlines()
    novels = ["\n".join(paragraphs[start : start + PARAGRAPHS]) for start in range(0, len(paragraphs), PARAGRAPHS)]
    output.mkdir(parents=True, exist_ok=True)
    for name, documents in (("wikipedia", articles + leads), ("novels", novels)):
        parts: dict[bool, list[str]] = {False: [], True: []}
        for document in documents:
            parts[is_held_out(document, HELD_OUT[name])].append(document)
        write(output / f"{name}.txt.gz", parts[False])
        write(output / f"{name}.heldout.txt.gz", parts[True])
        print(f"{name}: {len(parts[False])} documents to train on, {len(parts[True])} held out")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
