"""What a run leaves: JSON with every value, a page of tables, pictures; on demand the figures of the docs."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson

from benchmarks import plots, tables
from benchmarks.environments import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURES = ROOT / "docs" / "images" / "performance"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclass(frozen=True, slots=True)
class Result:
    """One run, as it is kept."""

    name: str
    command: str
    quick: bool
    seed: int
    load_before: float
    disturbed: bool
    took_s: float
    machine: Mapping[str, object]
    sizes: Sizes
    samples: Samples

    def write(self) -> Path:
        """Write JSON, Markdown and pictures, and return the Markdown's path."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        kept = {
            **{name: getattr(self, name) for name in ("name", "command", "quick", "seed", "load_before")},
            "disturbed": self.disturbed,
            "took_s": self.took_s,
            "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": dict(self.machine),
            "sizes": asdict(self.sizes),
            "failures": self.samples.failures,
            "notes": self.samples.notes,
            "series": self.samples.plain(),
        }
        options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
        (RESULTS / f"{self.name}.json").write_bytes(orjson.dumps(kept, option=options))
        pictures = plots.draw(self.samples, RESULTS, self.name, self._line())
        shown = "\n".join(f"![{picture.stem}]({picture.name})" for picture in pictures)
        path = RESULTS / f"{self.name}.md"
        path.write_text(f"# {self.name}\n\n{self.page()}\n\n{shown}\n")
        return path

    def page(self) -> str:
        """Return the figures as Markdown, without a head of its own."""
        return "\n\n".join(
            (
                self._line(),
                "### Targets",
                tables.goal_table(self.samples, self.sizes),
                tables.failure_list(self.samples.failures),
                *self.samples.notes,
                "### Figures",
                tables.figure_tables(self.samples),
                "### The machine",
                tables.machine_table(self.machine),
            )
        )

    def publish(self) -> None:
        """Put the figures into docs/performance.md, and the pictures beside it."""
        shutil.rmtree(PICTURES, ignore_errors=True)
        PICTURES.mkdir(parents=True)
        drawn = plots.draw(self.samples, PICTURES, "figures", self._line())
        shown = "\n".join(f"![{picture.stem}](images/performance/{picture.name})" for picture in drawn)
        head, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{BEGIN}\n\n{self.page()}\n\n### Plots\n\n{shown}\n\n{END}{tail}")

    def _line(self) -> str:
        kind = "quick run" if self.quick else "full run"
        disturbed = ", DISTURBED: other work ran beside it" if self.disturbed else ""
        day = datetime.now(UTC).date().isoformat()
        return (
            f"A {kind} of {day}, {self.took_s / 60:.0f} minutes, seed {self.seed}, "
            f"load before it {self.load_before:.1f}{disturbed}: `{self.command}`"
        )
