"""llama-perplexity: what is asked of it, and what it prints (engine 0c1e57098 on the lab's two cards)."""

from __future__ import annotations

from pathlib import Path

import fake_tier
import pytest

from checker import perplexity
from checker.perplexity import Divergence

PRINTED = """
chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS
   1      19.7835 ±    3.2241       0.00000 ±       -nan      -0.00000 ±    0.00000     0.001 ±  0.000 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  22.111665 ±   2.671209
Mean ln(PPL(Q)/PPL(base))     :   0.000002 ±       -nan

====== KL divergence statistics ======
Mean    KLD:  {mean} ±   0.000001
Maximum KLD:   0.000039
99.9%   KLD:   0.000039
Median  KLD:  -0.000000
Minimum KLD:  -0.000047

====== Token probability statistics ======
Mean    Δp:  0.000 ± 0.000 %
Same top p: {same} ± 0.000 %
"""
ARGV = (
    *("/opt/releases/one/bin/llama-server", "--model", "/m.gguf", "--alias", "tiny", "--port", "8081"),
    *("--rpc", "127.0.0.1:50052,127.0.0.1:50053", "--device", "RPC0,RPC1", "--n-gpu-layers", "19"),
    *("--split-mode", "layer", "--tensor-split", "14,5", "--ctx-size", "4096", "--parallel", "1"),
    *("--cache-type-k", "q8_0", "--flash-attn", "on", "--load-mode", "mmap", "--fit", "off", "--no-ui", "--offline"),
)
SPEC = fake_tier.spec(argv=ARGV)


@pytest.mark.parametrize(
    ("mean", "same", "found"),
    [
        ("-0.000000", "100.000", Divergence(0.0, 0.000039, 1.0)),
        ("0.012345", "98.250", Divergence(0.012345, 0.000039, 0.9825)),
        ("-nan", "100.000", None),
        ("0.000001", "-nan", None),
    ],
)
def test_the_statistics_are_read(mean: str, same: str, found: Divergence | None) -> None:
    assert perplexity.read(PRINTED.format(mean=mean, same=same)) == found


def test_an_end_before_the_statistics_is_none() -> None:
    assert perplexity.read("llama_model_load: error loading model") is None


def test_the_reference_is_computed_as_the_tier_computes_but_unsplit() -> None:
    command = perplexity.base(SPEC, perplexity.alone(SPEC, "RPC1"), Path("/t.txt"), Path("/logits"))
    assert command == (
        *("/opt/releases/one/bin/llama-perplexity", "--model", "/m.gguf"),
        *("--cache-type-k", "q8_0", "--flash-attn", "on", "--load-mode", "mmap", "--fit", "off"),
        *("--rpc", "127.0.0.1:50052,127.0.0.1:50053", "--device", "RPC1", "--n-gpu-layers", "999"),
        *("--split-mode", "none", "--ctx-size", "512", "--chunks", "4", "--offline"),
        *("--kl-divergence-base", "/logits", "--file", "/t.txt"),
    )


def test_the_split_is_that_of_the_tier() -> None:
    command = perplexity.compare(SPEC, perplexity.split(SPEC), Path("/logits"))
    assert command[-1] == "--kl-divergence"
    assert "--tensor-split 14,5" in " ".join(command)
    assert "--device RPC0,RPC1" in " ".join(command)
    assert "--port" not in command and "--alias" not in command
    assert "--device none --n-gpu-layers 0" in " ".join(perplexity.on_host())
