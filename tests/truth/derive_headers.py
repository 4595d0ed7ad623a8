"""Write the headers that follow from `shapes.py` into the catalogue, where the file itself was not read.

    .venv/bin/python tests/truth/derive_headers.py [--check] [CATALOGUE]

A header that `checker lock` read from a file has no `header_derived` and is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import shapes  # noqa: E402

from checker import catalogue_file  # noqa: E402
from checker.header import Header, Tensor, from_metadata  # noqa: E402

CATALOGUE = Path(__file__).parents[2] / "catalogue/models.yml"
# Sixteen published files of these shapes have exactly the derived tensors (tests/contract/test_catalogue_models.py);
# what is left to be wrong is a publisher who used another mix, which `checker lock` finds out.
TOLERANCE = 0.001


def header(model: shapes.ShapedModel) -> Header:
    """Return the header of a model as its shapes and mix give it."""
    table = [Tensor(tensor.name, tensor.shape, tensor.type_name, tensor.bytes) for tensor in model.tensors()]
    return from_metadata(model.metadata(), table, model.name)


def changes(models: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what has to change in a catalogue."""
    wanted = {}
    for name, model in shapes.MODELS.items():
        entry = models.get(name)
        if entry is not None and ("header" not in entry or "header_derived" in entry):
            derived = {"header_derived": {"tolerance": TOLERANCE}, "header": catalogue_file.spelled(header(model))}
            if any(entry.get(key) != value for key, value in derived.items()):
                wanted[name] = derived
    return wanted


def main(arguments: list[str]) -> int:
    """Write, or with --check only say what would be written; exit 1 when that is something."""
    check = "--check" in arguments
    path = Path(next((word for word in arguments if not word.startswith("-")), CATALOGUE))
    text, models = catalogue_file.read(path)
    wanted = changes(models)
    for name in wanted:
        print(f"{name}: {'differs' if check else 'derived'}")
    if wanted and not check:
        catalogue_file.write(path, catalogue_file.changed(text, wanted, str(path)))
    return 1 if wanted and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
