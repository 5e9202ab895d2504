"""The measurements of scale: one module for each section.

``python benchmarks/scale.py SECTION [OPTIONS]`` runs ``benchmarks/scale_SECTION.py``; without a section it lists them.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    sections = sorted(path.stem.removeprefix("scale_") for path in FOLDER.glob("scale_*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in sections:
        usage = f"usage: python benchmarks/scale.py {{{','.join(sections)}}} [OPTIONS]"
        if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
            print(usage)
            return
        sys.exit(usage)
    module = FOLDER / f"scale_{sys.argv[1]}.py"
    sys.argv[:2] = [str(module)]
    sys.path.insert(0, str(FOLDER))
    runpy.run_path(str(module), run_name="__main__")


if __name__ == "__main__":
    main()
