"""A small inventory that is right, for tests to break in one place at a time."""

from __future__ import annotations

import copy
from typing import Any

BIG = {"name": "NVIDIA GeForce RTX 3060 Ti", "uuid": "GPU-3060a11a-0000-4000-8000-000000000001"}
SMALL = {"name": "NVIDIA GeForce GTX 1060 3GB", "uuid": "GPU-10603b00-0000-4000-8000-000000000002"}

MIB = 1024 * 1024

MODELS: dict[str, Any] = {
    "tiny": {
        "file": "tiny.gguf",
        "sha256": "ab" * 32,
        "bytes": 10 * MIB,
        "header": {
            "architecture": "llama",
            "n_layer": 4,
            "n_ctx_train": 8192,
            "n_embd": 64,
            "n_vocab": 1000,
            "n_head": [1, 1, 1, 1],
            "head_kv": [1, 1, 1, 1],
            "head_dim_k": 64,
            "head_dim_v": 64,
            "n_ff": [128, 128, 128, 128],
            "layer_bytes": [1 * MIB, 2 * MIB, 3 * MIB, 4 * MIB],
            "expert_bytes": [0, 0, 0, 0],
            "output_bytes": 5 * MIB,
            "token_embd_bytes": 6 * MIB,
            "tied": False,
            "n_swa": 0,
            "sliding": [False, False, False, False],
            "n_expert": 0,
            "n_expert_used": 0,
        },
    }
}

ENGINES: dict[str, Any] = {
    "new": {
        "commit": "0" * 40,
        "split_modes": {"cuda": ["none", "layer", "tensor"], "cpu": ["none", "layer"], "rpc": ["none", "layer"]},
        "flags": {
            "load_mode": {"mmap": ["--load-mode", "mmap"], "dio": ["--load-mode", "dio"]},
            "log": ["--log-jsonl"],
            "no_ui": ["--no-ui"],
        },
    },
    "old": {
        "commit": "1" * 40,
        "split_modes": {"cuda": ["none", "layer", "row"], "cpu": ["none", "layer"], "rpc": ["none", "layer"]},
        "flags": {
            "load_mode": {"mmap": [], "dio": ["--direct-io"]},
            "log": ["--log-verbosity", "4"],
            "no_ui": ["--no-ui"],
        },
    },
}


def inventory(**changes: Any) -> dict[str, Any]:
    """Return the arguments of check_inventory; `changes` replace whole arguments."""
    whole: dict[str, Any] = {
        "gpus": [BIG, SMALL],
        "tiers": [
            {
                "name": "fast",
                "port": 8080,
                "context": 4096,
                "gpus": [BIG["name"]],
                "candidates": [{"model": "tiny", "placement": {"split_mode": "none", "tensor_split": [5]}}],
            },
            {
                "name": "deep",
                "port": 8081,
                "context": 4096,
                "gpus": [BIG["name"], SMALL["uuid"]],
                "candidates": [{"model": "tiny", "placement": {"tensor_split": [3, 2]}}],
            },
        ],
        "models": MODELS,
        "engines": ENGINES,
        "engine": "new",
        "backend": "cuda",
    }
    whole.update(changes)
    return copy.deepcopy(whole)
