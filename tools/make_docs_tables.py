"""Fill the result tables of README.md and docs/ from benchmarks/results/*.json, between their markers.

A marker is `<!-- results:NAME -->` ... `<!-- /results -->`; NAME is the stem of a results file, or
`summary` for all of them. A results file is {"machine", "versions", "seconds", "rows": [{"method", "data", "score",
"unit", "values": [one per seed], "ci95": [low, high], "baselines": {name: value}, "summary": false to keep the row out
of the summary}]}. `--check` changes nothing and fails when a table is not what the files say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MARKER = re.compile(r"(<!-- results:(?P<name>[\w-]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
NOTHING = "No results have been recorded yet.\n"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results by the stem of their file; raises ValueError naming the file and the key that is missing."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result.get("rows"), list):
            continue
        for row in result["rows"]:
            missing = {"method", "data", "score", "values"} - set(row)
            if missing:
                raise ValueError(f"{path.name}: a row lacks {', '.join(sorted(missing))}")
        results[path.stem] = result
    return results


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, in the order given."""
    lines = ["| method | data | score | mean | each seed | 95 % | baselines |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        values = [float(value) for value in row["values"]]
        interval = " to ".join(f"{float(end):.3f}" for end in row.get("ci95") or []) or "-"
        baselines = ", ".join(f"{name} {float(value):.3f}" for name, value in (row.get("baselines") or {}).items())
        score = row["score"] + (f" ({row['unit']})" if row.get("unit") else "")
        cells = [
            row["method"],
            row["data"],
            score,
            f"**{sum(values) / len(values):.3f}**",
            ", ".join(f"{value:.3f}" for value in values),
            interval,
            baselines or "-",
        ]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def section(name: str, results: dict[str, dict[str, Any]]) -> str:
    """The text between the markers of NAME."""
    if name == "summary":
        rows = [row for result in results.values() for row in result["rows"] if row.get("summary", True)]
        return table(rows) if rows else NOTHING
    result = results.get(name)
    if not result or not result["rows"]:
        return NOTHING
    cost = [str(result["machine"])] if result.get("machine") else []
    if isinstance(result.get("seconds"), (int, float)):
        cost.append(f"{float(result['seconds']):.0f} s in all")
    versions = ", ".join(f"{key} {value}" for key, value in (result.get("versions") or {}).items())
    note = "; ".join([*cost, versions] if versions else cost)
    told = dict.fromkeys(row["note"] for row in result["rows"] if str(row.get("note")).startswith("told per step"))
    lines = [*(f"Predictions are {line}." for line in told), *([f"Measured on: {note}."] if note else [])]
    return table(result["rows"]) + "".join(f"\n{line}\n" for line in lines)


def filled(text: str, results: dict[str, dict[str, Any]]) -> str:
    """`text` with every marked table written anew."""
    return MARKER.sub(lambda match: match[1] + section(match["name"], results) + match[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when a table is out of date")
    check = parser.parse_args().check
    results = read_results(ROOT / "benchmarks" / "results")
    stale = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        old = page.read_text(encoding="utf-8")
        new = filled(old, results)
        if new != old:
            stale.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(new, encoding="utf-8")
    print("\n".join(f"{'out of date' if check else 'filled'}: {name}" for name in stale) or "all tables are up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
