"""Which words of an inventory are taken for slips, and which are the reader's own."""

from __future__ import annotations

import pytest

from checker import spelling

OF_ROLES = {"tiers_idle_s", "tiers_cooldown_s", "llama_cpp_backend", "verification_depth"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("tiers_idle", "tiers_idle_s"),
        ("tier_cooldown_s", "tiers_cooldown_s"),
        ("llama_cpp_backed", "llama_cpp_backend"),
        ("llama_tier_mirror", "llama_tiers_mirror"),
        ("tier", "tiers"),
    ],
)
def test_a_word_that_is_nearly_one_that_is_read_is_a_slip(word: str, meant: str) -> None:
    assert spelling.misspelt([word], OF_ROLES) == (f"nothing reads {word} in the inventory: did you mean {meant}?",)


@pytest.mark.parametrize("word", ["tiers_idle_s", "ram", "ansible_host", "ansible_user", "backup_directory", "frame"])
def test_what_is_read_and_what_is_somebody_elses_is_not(word: str) -> None:
    assert spelling.misspelt([word], OF_ROLES) == ()
