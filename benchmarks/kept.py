"""How results with a row a run are kept: JSON, one row a line, so that a change of one is a change of one line."""

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """What is kept, or the beginning of it."""
    return json.loads(file.read_text()) if file.exists() else {"rows": []}


def write(file: Path, found: dict[str, Any]) -> None:
    """Replaces what was kept."""
    rows = ",\n  ".join(json.dumps(row) for row in found["rows"])
    text = json.dumps({**found, "rows": []}, indent=1).replace('"rows": []', f'"rows": [\n  {rows}\n ]')
    file.write_text(text + "\n")
