"""synthesize.py [NAME...|real]: models with the mission's exact shapes and types, random weights from a fixed seed.

Every tensor has the shape and type that it has in the published file (tests/truth/shapes.py), so memory and speed are
those of the published model. The weights are noise of a size that keeps every layer's output near 1. The vocabulary is
the real one, from the engine's own source; rows of the output matrix that are no plain English word are zero, so that
what the model says is words, if without meaning: its text shows that the numbers went through, and nothing of quality.

Writes the files for the mirror, and the catalogue of those that tiers serve (build/gpu/catalogue.yml, with what
`checker lock` reads of them). `real` puts the small real model together from its parts instead.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy
import proof
import shapes
import yaml
from models import _add as add_value

from checker.planning import read_yaml

SEED = 20261126
SOURCE = proof.STATE / "source/llama.cpp.git"
VOCABULARIES = {"qwen2": "qwen2", "llama": "llama-bpe"}
PREFIX = "synthetic-"
# Served by the tiers, measured beside them, and tried besides.
SERVED = ("deepseek-r1-distill-qwen-14b-q4_k_m", "deepseek-r1-distill-qwen-7b-q6_k")
MEASURED = ("deepseek-r1-distill-qwen-14b-q5_k_m", "llama-3.1-8b-instruct-abliterated-q6_k")
TRIED = ("qwen2.5-14b-instruct-q6_k",)
GEMMA = "gemma-3-270m-it-q4_k_m"
WORD = re.compile("\u0120[a-z]{2,}")  # GPT-2 spells a leading blank so

# Bytes of a block that are random, and of its scales that are not: a weight is scale * random number, so that its root
# mean square is `spread` * scale (of Q4_K and Q5_K with a minimum of `centre` * scale that makes the mean 0).
POOL_BLOCKS = 1 << 19


def name_of(model: str) -> str:
    """Return what the synthetic model is called; never what the published one is."""
    return f"{PREFIX}{model}"


def file_of(model: str, folder: Path = proof.MODELS) -> Path:
    return folder / f"{name_of(model)}.gguf"


def blocks(kind: str, row: int) -> numpy.ndarray[Any, Any]:
    """Return random blocks of a K-quant, as bytes, whose weights suit rows of so many numbers."""
    random = numpy.random.default_rng((SEED, row, len(kind), ord(kind[1])))
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    pool = random.integers(0, 256, (POOL_BLOCKS, size), dtype=numpy.uint8)
    if kind == "Q6_K":  # ql 128, qh 64, scales 16 (signed), d
        pool[:, 208:210] = _half(1 / (74 * 18.5 * row**0.5))
    else:  # d, dmin, scales 12, qh 32 of Q5_K, qs 128; scales and minima are 6 bits, mean 31.5
        top = {"Q4_K": 15, "Q5_K": 31}[kind]
        scale = 1 / (36.4 * 0.42 * top * row**0.5)
        pool[:, 0:2] = _half(scale)
        pool[:, 2:4] = _half(scale * top / 2)
    return pool


def _half(value: float) -> numpy.ndarray[Any, Any]:
    return numpy.array([value], dtype="<f2").view(numpy.uint8)


def weights(tensor: shapes.TensorShape, index: int, pools: dict[tuple[str, int], Any]) -> numpy.ndarray[Any, Any]:
    """Return a tensor's bytes: norms are 1, biases 0, the rest is cut out of the pool of its type at its own place."""
    if tensor.type_name == "F32":
        value = 0.0 if tensor.name.endswith(".bias") else 1.0
        return numpy.full(tensor.bytes // 4, value, dtype="<f4").view(numpy.uint8)
    key = tensor.type_name, tensor.shape[0]
    if key not in pools:
        pools[key] = blocks(*key)
    pool = pools[key]
    count = tensor.bytes // pool.shape[1]
    random = numpy.random.default_rng((SEED, index))
    pieces, have = [], 0
    while have < count:
        start = int(random.integers(0, POOL_BLOCKS // 2))
        pieces.append(pool[start : start + count - have])
        have += len(pieces[-1])
    return numpy.concatenate(pieces)


def vocabulary(architecture: str) -> gguf.GGUFReader:
    """Return the vocabulary file of the engine's source tree."""
    path = proof.STATE / f"vocabulary-{architecture}.gguf"
    if not path.exists():
        name = f"HEAD:models/ggml-vocab-{VOCABULARIES[architecture]}.gguf"
        path.write_bytes(subprocess.run(["git", "-C", SOURCE, "show", name], stdout=subprocess.PIPE, check=True).stdout)
    return gguf.GGUFReader(path)


def add_vocabulary(writer: gguf.GGUFWriter, architecture: str, count: int) -> list[str]:
    """Add the real vocabulary, filled up with unused tokens as published files are; return the tokens."""
    fields = vocabulary(architecture).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    missing = count - len(tokens)
    tokens += [f"[PAD{len(tokens) + number}]" for number in range(missing)]
    types += [int(gguf.TokenType.UNUSED)] * missing
    writer.add_tokenizer_model(fields["tokenizer.ggml.model"].contents())
    writer.add_tokenizer_pre(fields["tokenizer.ggml.pre"].contents())
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    for key in ("bos_token_id", "eos_token_id"):
        writer.add_uint32(f"tokenizer.ggml.{key}", fields[f"tokenizer.ggml.{key}"].contents())
    return [str(token) for token in tokens]


def write(name: str, folder: Path = proof.MODELS) -> dict[str, Any]:
    """Write one model; return its file, size and sha256."""
    model, path = shapes.MODELS[name], file_of(name, folder)
    began = time.monotonic()
    partial = path.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, model.shape.architecture)
    for key, value in model.metadata().items():
        if key != "tokenizer.ggml.model":
            add_value(writer, key, name_of(name) if key == "general.name" else value)
    tokens = add_vocabulary(writer, model.shape.architecture, model.shape.n_vocab)
    tensors = model.tensors()
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type_name]
        writer.add_tensor_info(
            tensor.name, tensor.shape[::-1], numpy.dtype(numpy.float32), tensor.bytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    digest = hashlib.sha256(partial.read_bytes())
    pools: dict[tuple[str, int], Any] = {}
    with partial.open("ab") as file:

        def put(data: Any) -> None:
            file.write(data)
            digest.update(data)

        put(b"\0" * (-file.tell() % writer.data_alignment))
        for index, tensor in enumerate(tensors):
            data = weights(tensor, index, pools)
            if tensor.name == "output.weight":
                spoken = numpy.array([WORD.fullmatch(token) is not None for token in tokens])
                # The block's scale, at its end: such a row is 0 whatever it is multiplied with.
                rows = data.reshape(len(tokens), -1, data.shape[1])
                rows[~spoken, :, 208:210] = 0
            put(numpy.ascontiguousarray(data).reshape(-1).data)
            put(b"\0" * (-tensor.bytes % writer.data_alignment))
    partial.replace(path)
    size = path.stat().st_size
    took = time.monotonic() - began
    print(f"{path.name}: {size:,} bytes in {took:.0f} s", flush=True)
    return {
        "name": name_of(name),
        "file": path.name,
        "bytes": size,
        "sha256": digest.hexdigest(),
        "wrote_s": round(took),
    }


def before() -> list[dict[str, Any]]:
    """Return what earlier evidence tells of files that are still here."""
    path = proof.EVIDENCE / "models.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    return [entry for entry in entries if (proof.MODELS / entry["file"]).exists()]


def put_together() -> int:
    """Put the small real model together from its parts; return the exit code."""
    entry = read_yaml(proof.ROOT / "catalogue/models.yml")["models"][GEMMA]
    path = proof.MODELS / entry["file"]
    parts = sorted((proof.STATE / "parts").glob("gemma.*"))
    proof.MODELS.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    if hashlib.sha256(path.read_bytes()).hexdigest() == str(entry["sha256"]):
        return 0
    names = ", ".join(part.name for part in parts) or "none"
    print(f"{path.name}: its parts here ({names}) have {path.stat().st_size:,} of {entry['bytes']:,} bytes, or others")
    path.unlink()
    return 1


def lock(written: list[dict[str, Any]]) -> None:
    """Write the catalogue of what tiers serve, its headers read by `checker lock` from the files themselves."""
    models = {
        entry["name"]: {key: entry[key] for key in ("file", "sha256", "bytes")}
        for entry in written
        if entry["name"] in map(name_of, SERVED)
    }
    proof.CATALOGUE.parent.mkdir(parents=True, exist_ok=True)
    proof.CATALOGUE.write_text(yaml.safe_dump({"models": models}, sort_keys=False), encoding="utf-8")
    for name in models:
        command = [str(Path(sys.executable).with_name("checker")), "lock", "--catalogue", str(proof.CATALOGUE)]
        subprocess.run([*command, "--file", str(proof.MODELS / models[name]["file"]), name], check=True)


def main() -> int:
    if sys.argv[1:] == ["real"]:
        return put_together()
    names = sys.argv[1:] or [*SERVED, *MEASURED, *TRIED]
    proof.MODELS.mkdir(parents=True, exist_ok=True)
    for architecture in {shapes.MODELS[name].shape.architecture for name in names}:
        vocabulary(architecture)
    began = time.monotonic()
    known = {entry["name"]: entry for entry in before()}
    missing = [name for name in names if name_of(name) not in known]
    with ProcessPoolExecutor(5) as pool:
        known |= {entry["name"]: entry for entry in pool.map(write, missing)}
    written = list(known.values())
    lock(written)
    document = proof.head("models", f"tests/gpu/synthesize.py {' '.join(sys.argv[1:])}".strip())
    document |= {"seed": SEED, "models": written, "wrote_s": round(time.monotonic() - began)}
    proof.write("models", document)
    return 0


if __name__ == "__main__":
    sys.exit(main())
