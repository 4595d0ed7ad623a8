from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
# What the unit tests play with: the file server, the small inventory.
sys.path[:0] = [str(HERE), str(HERE.parent / "unit")]
