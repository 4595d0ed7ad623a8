"""Write build/gpu/host.json: the cards of this machine as inventories/gpu wants them.

The UUID of a card that is not known beforehand cannot stand in an inventory; everything else can, and does.
"""

from __future__ import annotations

import json

import proof

from checker import hardware


def main() -> None:
    gpus = hardware.read_gpus()
    document = {
        "gpus": [{"name": gpu.name, "uuid": gpu.uuid} for gpu in gpus],
        "least_total_mib": min(gpu.total_mib for gpu in gpus),
    }
    proof.HOST.parent.mkdir(parents=True, exist_ok=True)
    proof.HOST.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
