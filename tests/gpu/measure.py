"""measure.py PART...: what can only be measured on a real card; each part writes one file of evidence.

memory   plan against NVML, by process and card: mission models, KV cache f16 and q8_0, one device and split
speed    the checker's tokens per second of prompt and answer against llama-bench's; same release, placement and depth
paced    the same of an H100 by mission models, on a share of the card that is about as slow as the reference host
load     seconds from start to ready of each tier, with the file out of memory and in it
modes    a model's file read through the page cache and past it, whole on the card and with layers on the CPU
fit      little memory free: our placement, llama.cpp's default, and the command that was once planned
kld      probabilities of a split model against those of the same model on one device
search   two cards: our placement against every split that fits
two      two devices with all their memory: whole-layer splits in both orders, and split mode tensor
switch   after `run.sh switching`: a request to a tier whose rival is loaded, with the load and beside it
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engine
import proof
import synthesize

from checker import cards, exercise, llama_server, placement, plan, systemd, tier
from checker import measure as checker_measure
from checker import memory as checker_memory
from checker import text as checker_text
from checker.evidence import Speed

DEEP, DEEP_Q5 = synthesize.SERVED[0], synthesize.MEASURED[0]
# The mission's third tier: its tokens take longest, also on a fast card.
LARGE = "qwen2.5-32b-instruct-q4_k_m"
# The mission's case: what is free of a card shared with others, and of an RTX 3060 Ti beside a GTX 1060.
FREE_ONE_CARD, FREE_TWO_CARDS = 11170, (8192, 3072)
PAGE_CACHE = proof.ROOT / "roles/models/molecule/default/files/page_cache.py"
MEMORY_PERCENT, SPEED_PERCENT, BEST_PERCENT = 3.0, 5.0, 98.0
SWITCHES, SWITCH_BESIDE_S = 4, 0.5
DEFAULT = "llama.cpp's default"


def document(part: str, cases: list[Any], **more: Any) -> None:
    """Write the evidence of a part as far as it has come: a run that is cut off keeps what it measured."""
    found = proof.head(part, f"tests/gpu/run.sh measure {part}")
    found["devices_per_card"] = proof.devices_per_card(len(found["cards"]))
    proof.write(part, found | more | {"cases": cases})


@contextmanager
def tiers_stopped() -> Iterator[None]:
    """Have the cards to ourselves; the tiers that served come back afterwards."""
    units = [spec.unit for spec in tier.load_all()]
    serving = list(filter(systemd.is_active, units))
    # The target first: with it no pinned tier comes back when a rival of it stops.
    if units:
        systemd.stop(tier.TARGET)
        systemd.stop(*units)
    try:
        yield
    finally:
        subprocess.run(["systemctl", "reset-failed"], check=False)
        if units:
            subprocess.run(["systemctl", "start", tier.TARGET, *serving], check=True)


def say(case: dict[str, Any], *keys: str) -> None:
    print(
        {key: case.get(key) for key in ("model", "tensor_split", "cache_type", *keys, "error") if key in case},
        flush=True,
    )


def _as_planned(case: dict[str, Any]) -> bool:
    off = [percent for percent in case.get("off_percent", {}).values() if percent is not None]
    return bool(off) and all(abs(percent) <= MEMORY_PERCENT for percent in off)


def memory() -> None:
    found: list[dict[str, Any]] = []
    split_over = engine.shown()
    with tiers_stopped():
        for name in (*synthesize.SERVED, *synthesize.MEASURED):
            path = synthesize.file_of(name)
            if not path.exists():
                continue
            header = engine.file_header(path)
            for used in (split_over[:1], split_over):
                for cache_type in ("f16", "q8_0"):
                    split = engine.uneven(header.n_layer + 1, len(used))
                    case = engine.served(path, engine.explicit(header, split, used, cache_type))
                    case["passed"] = _as_planned(case)
                    found.append(case)
                    say(case, "predicted_mib", "measured_mib", "off_percent", "passed")
                    document("memory", found, criterion=f"planned within {MEMORY_PERCENT} % of measured, by card")


def choice_of(spec: tier.TierSpec) -> placement.Choice:
    """Return a tier's own placement on the machine's cards."""
    by_uuid = {card.uuid: card for card in engine.physical()}
    used = [by_uuid[device.uuid] for device in spec.devices]
    return placement.evaluate(engine.file_header(Path(spec.model.file)), spec.placement, used, cards.Ram(None))


# llama-bench draws no token, it feeds random ones. The nearest to that: the most likely one, found on the card. A tier
# draws on the CPU, in a time that goes by the vocabulary and not by the card.
AS_THE_BENCH = ("--backend-sampling", "--samplers", "temperature")
SPEED_CRITERION = (
    f"the checker within {SPEED_PERCENT} % of llama-bench, prompt and answer, as a tier serves; as_the_bench tells how "
    f"much of what is missing goes into the drawing of tokens ({' '.join(AS_THE_BENCH)})"
)
# Shares of an H100's multiprocessors on which a model runs about as fast as is expected of the reference host
# (`checker plan -i inventories/reference`): 24 tokens/s of 14B on both cards, 52 to 58 of 8B and 7B on the first one.
PACES_PERCENT = {synthesize.MEASURED[1]: 24, synthesize.SERVED[1]: 24, DEEP: 12, DEEP_Q5: 12}
PACED_CRITERION = (
    f"the checker within {SPEED_PERCENT} % of llama-bench, prompt and answer, as a tier's command line serves, both on "
    "a share of the card's multiprocessors (CUDA MPS)"
)
# What the first card of the reference host has room for of DEEP (its trial's placement): a token takes there about as
# long as on that host's cards, for the layers that the host has to compute.
LAYERS_OF_ONE_CARD = 37


def agreement(ours: Speed, bench: Mapping[str, Any]) -> dict[str, Any]:
    """Hold the checker's medians against llama-bench's averages, of the same prompt and of an answer that follows it.

    `ms_between_tokens` is how much longer the server takes for a token of the answer.
    """
    depth = ours.context_tokens
    of_bench = {
        "prompt": bench.get(engine.bench_name(depth, 0)),
        "generation": bench.get(engine.bench_name(0, exercise.SHORT_ANSWER, depth)),
    }
    of_checker = {"prompt": ours.prompt_tokens_per_second, "generation": ours.generation_tokens_per_second}
    pairs = {
        what: (median.median, told["tokens_per_second"])
        for what, told in of_bench.items()
        if told and (median := of_checker[what])
    }
    off = {what: round(100 * (mine / theirs - 1), 2) for what, (mine, theirs) in pairs.items()}
    found: dict[str, Any] = {
        "off_percent": off,
        "passed": len(off) == len(of_bench) and all(abs(percent) <= SPEED_PERCENT for percent in off.values()),
    }
    if "generation" in pairs:
        mine, theirs = pairs["generation"]
        found["ms_between_tokens"] = round(1000 / mine - 1000 / theirs, 3)
    return found


def large() -> Path:
    """Return the file of the large model, written now if it is not there: on the disk, the others fill the memory."""
    folder = proof.STATE / "large"
    path = synthesize.file_of(LARGE, folder)
    if not path.exists():
        folder.mkdir(exist_ok=True)
        synthesize.write(LARGE, folder)
    return path


def speed_of(client: llama_server.LlamaServer) -> Speed:
    """Time a server as the checker does with a short prompt."""
    tokens = client.tokenize(checker_text.read())
    return exercise.short_speed(client, tokens, client.props().ctx_size, checker_measure.SEED)


def speed_served(path: Path, choice: placement.Choice, *more: str) -> Speed:
    """Time a server with the command line that the product would give it, and `more`."""
    command, environment = [*engine.server_argv(path, choice), *more], engine.environment(choice.cards)
    with engine.serving(command, environment) as running:
        return speed_of(running.client)


def compared(what: str, path: Path, choice: placement.Choice, as_a_tier: Speed, **more: Speed) -> dict[str, Any]:
    """Hold speeds of a placement, by how they were taken, against llama-bench's of the same prompt and answer."""
    depth = as_a_tier.context_tokens
    bench = engine.bench(path, choice, exercise.SHORT_ANSWER, times=5, prompt=depth, depths=(0, depth))
    ours = {"as_a_tier": as_a_tier, **more}
    case: dict[str, Any] = {
        "what": what,
        "model": path.stem,
        "tensor_split": list(choice.placement.tensor_split),
        "llama_bench": bench,
        **{name: {"checker": asdict(one), **agreement(one, bench)} for name, one in ours.items()},
    }
    case["passed"] = case["as_a_tier"]["passed"]
    print(path.stem, {name: case[name]["off_percent"] for name in ours}, case["passed"], flush=True)
    return case


def speed() -> None:
    used = engine.shown()[:1]
    found: list[dict[str, Any]] = []

    def add(what: str, path: Path, choice: placement.Choice, as_a_tier: Speed) -> None:
        found.append(compared(what, path, choice, as_a_tier, as_the_bench=speed_served(path, choice, *AS_THE_BENCH)))
        document("speed", found, criterion=SPEED_CRITERION)

    tiers = [(spec, speed_of(llama_server.LlamaServer.of(spec))) for spec in tier.load_all()]
    with tiers_stopped():
        for spec, as_served in tiers:
            add(f"tier {spec.name}", Path(spec.model.file), choice_of(spec), as_served)
        for name in (DEEP, *synthesize.MEASURED, LARGE):
            path = large() if name == LARGE else synthesize.file_of(name)
            header = engine.file_header(path)
            layers = LAYERS_OF_ONE_CARD if name == DEEP else header.n_layer + 1
            choice = engine.explicit(header, (layers,), used)
            add("beside the tiers", path, choice, speed_served(path, choice))


def paced() -> None:
    devices = engine.shown()
    found: list[dict[str, Any]] = []
    with tiers_stopped():
        for name, percent in PACES_PERCENT.items():
            path = synthesize.file_of(name)
            if not path.exists():
                continue
            header = engine.file_header(path)
            used = devices if name == DEEP else devices[:1]
            choice = engine.explicit(header, engine.uneven(header.n_layer + 1, len(used)), used)
            with engine.paced(percent) as multiprocessors:
                case = compared("on a share of the card", path, choice, speed_served(path, choice))
            found.append({**case, "active_thread_percentage": percent, "multiprocessors": multiprocessors})
            document("paced", found, criterion=PACED_CRITERION)


def switch() -> None:
    """Ask fast and deep in turn by their ports, each time with the other one loaded."""
    specs = {spec.name: spec for spec in tier.load_all()}
    found: list[dict[str, Any]] = []
    for name in ("deep", "fast") * SWITCHES:
        spec = specs[name]
        rival = specs[spec.rivals[0]]
        subprocess.run(["systemctl", "start", rival.unit], check=True)
        began = time.monotonic()
        client = llama_server.LlamaServer(spec.local_url, spec.key_file)
        answer = client.complete(checker_measure.PROMPT, 32, 0, checker_measure.SEED, 300)
        wall_s = time.monotonic() - began
        state = systemd.unit_state(spec.unit)
        load_s = (state.active_monotonic_us - state.started_monotonic_us) / 1e6
        held = {device.uuid: checker_measure.held_mib(device.uuid, state.main_pid or 0) for device in spec.devices}
        case = {
            "tier": name,
            "wall_s": round(wall_s, 3),
            "load_s": round(load_s, 3),
            "answer_s": round((answer.prompt_ms + answer.generation_ms) / 1000, 3),
            "held_mib": held,
            "rival": systemd.unit_state(rival.unit).active_state,
        }
        case["beside_s"] = round(wall_s - load_s - case["answer_s"], 3)
        case["passed"] = case["rival"] == "inactive" and case["beside_s"] < SWITCH_BESIDE_S
        found.append(case)
        print(case, flush=True)
        document("switch", found, criterion=f"less than {SWITCH_BESIDE_S} s beside the load and the answer")


def _page_cache(file: str, *drop: str) -> int:
    done = subprocess.run([sys.executable, PAGE_CACHE, file, *drop], capture_output=True, text=True, check=True)
    return int(done.stdout)


def load() -> None:
    found = []
    for spec in tier.load_all():
        case: dict[str, Any] = {"tier": spec.name, "model": spec.model.name, "cold": [], "warm": []}
        for kind in ("cold", "warm", "warm", "cold"):
            subprocess.run(["systemctl", "stop", spec.unit], check=True)
            pages = _page_cache(spec.model.file, *(["drop"] if kind == "cold" else []))
            done = subprocess.run(["systemctl", "start", spec.unit], capture_output=True, text=True, check=False)
            if done.returncode:
                case[kind].append({"error": done.stderr.strip()})
                continue
            state = systemd.unit_state(spec.unit)
            seconds = (state.active_monotonic_us - state.started_monotonic_us) / 1e6
            case[kind].append({"load_s": round(seconds, 3), "pages_in_memory_before": pages})
        found.append(case)
        print(case, flush=True)
        document("load", found)


def modes() -> None:
    # On the disk: what fills the memory there is no page cache.
    path = Path(shutil.copy(synthesize.file_of(DEEP), proof.STATE))
    header, used = engine.file_header(path), engine.shown()[:1]
    whole, size_mib = header.n_layer + 1, path.stat().st_size // 2**20
    found: list[dict[str, Any]] = []
    with tiers_stopped():
        for layers in (whole, LAYERS_OF_ONE_CARD):
            choice = engine.explicit(header, (layers,), used)
            for mode in (tier.MMAP, tier.DIO, tier.DIO, tier.MMAP):
                _page_cache(str(path), "drop")
                case = {"load_mode": mode, "layers_on_card": layers, "file_mib": size_mib}
                found.append(case | _read_as(path, choice, engine.server_argv(path, choice, mode)))
                print(found[-1], flush=True)
                document("modes", found)


def _read_as(path: Path, choice: placement.Choice, command: Sequence[str]) -> dict[str, Any]:
    try:
        with engine.serving(command, engine.environment(choice.cards)) as running:
            told = dict(line.split(": ") for line in Path(f"/proc/{running.pid}/io").read_text().splitlines())
            return {
                "load_s": running.load_s,
                "read_mib": int(told["read_bytes"]) // 2**20,
                "pages_in_memory": _page_cache(str(path)),
                "tokens_per_second": engine.rate(running),
                "measured_mib": engine.held_mib(running.pid),
                "predicted_mib": engine.predicted_mib(plan.devices(choice)),
            }
    except (engine.NotServedError, llama_server.ServerError) as error:
        return {"error": str(error)}


def _by_hand(name: str, model: Path, flags: Sequence[str], extra: dict[str, str]) -> dict[str, Any]:
    """Run llama-server with flags of somebody else's."""
    own = ["--model", str(model), "--ctx-size", str(engine.CONTEXT), "--log-verbosity", "4"]
    place = ["--port", str(engine.PORT), "--offline", "--no-ui", "--cache-ram", "0", "--parallel", "1"]
    case: dict[str, Any] = {"what": name, "model": model.stem, "flags": [*flags, *own[2:]], "environment": extra}
    try:
        command = [str(proof.RELEASE / "bin/llama-server"), *own, *flags, *place]
        with engine.serving(command, extra) as running:
            case["tokens_per_second"] = engine.rate(running)
            case["measured_mib"] = engine.held_mib(running.pid)
            case["offloaded"] = next(
                (line for line in running.lines() if "offloaded" in line and "layers" in line), None
            )
    except (engine.NotServedError, llama_server.ServerError) as error:
        case["error"] = str(error)
    return case


def others(model: Path, extra: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Serve a model by llama.cpp's default, and by the command that was once planned."""
    yield _by_hand(DEFAULT, model, [], extra)
    once = ["--n-gpu-layers", "999", "--split-mode", "row", "--tensor-split", "8,3"]
    yield _by_hand("the command that was once planned", model, once, extra)
    yield _by_hand("the same with layer split", model, [*once[:3], "layer", *once[4:]], extra)


def _median(case: dict[str, Any]) -> float | None:
    found = case.get("tokens_per_second")
    return float(found["as_asked"]["median"]) if found else None


def compare(cases: Sequence[dict[str, Any]]) -> None:
    """Add to each case how many times as fast as the default it is, and say the last one."""
    default = next((_median(each) for each in cases if each["what"] == DEFAULT), None)
    for each in cases:
        mine = _median(each)
        each["times_the_default"] = round(mine / default, 2) if mine and default else None
    last = cases[-1]
    print(last["what"], last.get("tensor_split"), _median(last), last.get("offloaded"), last.get("error"), flush=True)


def _wanted() -> dict[str, int]:
    """Return what is to be free of each card: what models may have on the cards that are played.

    A large card's own CUDA memory is several times that of the cards played: what it takes more is free besides.
    """
    entries = engine.gpus()
    free = [FREE_ONE_CARD] if len(entries) == 1 else FREE_TWO_CARDS
    more = placement.overhead(engine.physical()[0]).mib - checker_memory.cuda_overhead("8.6").mib
    return {entry.uuid: mib + int(more) for entry, mib in zip(entries, free, strict=False)}


def _ours(header: Any, left: dict[str, int]) -> placement.Choice | placement.Refusal:
    host = cards.Host(tuple(engine.smaller(card, left[str(card.uuid)]) for card in engine.physical()))
    return placement.search(header, host, placement.Demand(context=engine.CONTEXT))


def fit() -> None:
    model = synthesize.file_of(DEEP)
    header = engine.file_header(model)
    layers = header.n_layer + 1
    found: list[dict[str, Any]] = []

    def add(case: dict[str, Any]) -> None:
        found.append(case)
        compare(found)
        document("fit", found, free_mib=left)

    with tiers_stopped(), engine.holding(_wanted()) as left:
        every = engine.shown()
        extra = engine.environment(every)
        chosen = _ours(header, left)
        if isinstance(chosen, placement.Refusal):
            add({"what": "ours", "error": "; ".join(chosen.reasons)})
        else:
            add({"what": "ours"} | engine.served(model, chosen))
        for case in others(model, extra):
            add(case)
        split = engine.halves(layers, len(every)) if len(left) == 1 else (38, layers - 38)
        for what, mode in (("explicit split", "layer"), ("tensor split", "tensor")):
            add({"what": what} | engine.served(model, engine.explicit(header, split, every, mode=mode)))


def two() -> None:
    """Serve whole-layer splits in both orders of the devices, then split mode tensor, with all memory free."""
    devices = engine.shown()[:2]
    if len(devices) < 2:
        print("two: needs two devices", flush=True)
        return
    # One card that is shown twice has one order.
    orders = tuple(dict.fromkeys((devices, devices[::-1])))
    headers = {path: engine.file_header(path) for path in map(synthesize.file_of, (DEEP_Q5, DEEP))}
    by_layers = [
        (path, "layer", split, order) for path in headers for split in ((36, 13), (38, 11)) for order in orders
    ]
    # Last, for it has crashed the server before.
    by_rows = [(path, "tensor", split, devices) for path in headers for split in ((25, 24), (38, 11))]
    found: list[dict[str, Any]] = []
    with tiers_stopped():
        for path, mode, split, order in (*by_layers, *by_rows):
            case = engine.served(path, engine.explicit(headers[path], split, order, mode=mode))
            # The engine has no estimate of tensor split that the planner could be held to.
            if mode == "layer":
                case["passed"] = _as_planned(case)
            found.append(case)
            say(case, "split_mode", "off_percent", "tokens_per_second", "passed")
            document("two", found, criterion=f"split by layers: planned within {MEMORY_PERCENT} % of measured, by card")


def kld() -> None:
    found = []
    text = proof.STATE / "text.md"
    text.write_text(
        "".join(path.read_text(encoding="utf-8") for path in sorted(proof.ROOT.glob("docs/*.md"))), encoding="utf-8"
    )
    small = proof.MODELS / "gemma-3-270m-it-Q4_K_M.gguf"
    base = proof.STATE / "logits.kld"
    every = engine.shown()
    with tiers_stopped():
        for model in (synthesize.file_of(DEEP), small):
            if not model.exists():
                continue
            header = engine.file_header(model)
            layers = header.n_layer + 1
            alone = engine.explicit(header, (layers,), every[:1])
            said = engine.perplexity(model, alone, base, text, compare=False)
            cases = {
                "again, on one device": alone,
                "split": engine.explicit(header, engine.uneven(layers, len(every)), every),
            }
            for what, choice in cases.items():
                told = said if "error" in said else engine.perplexity(model, choice, base, text, compare=True)
                case = {"model": model.stem, "what": what, "tensor_split": list(choice.placement.tensor_split), **told}
                found.append(case)
                print(case, flush=True)
                document("kld", found)
    base.unlink(missing_ok=True)


def search() -> None:
    model = synthesize.file_of(DEEP)
    header = engine.file_header(model)
    layers = header.n_layer + 1
    found: list[dict[str, Any]] = []
    if len(engine.gpus()) < 2:
        print("search: needs two cards", flush=True)
        return
    with tiers_stopped(), engine.holding(_wanted()) as left:
        ours = _ours(header, left)
        if isinstance(ours, placement.Refusal):
            document("search", [], error="; ".join(ours.reasons), free_mib=left)
            return
        small = tuple(engine.smaller(card, left[str(card.uuid)]) for card in engine.physical())
        tried = {tuple(card.uuid for card in ours.cards): {ours.placement.tensor_split}}
        mine = engine.bench(model, ours, tokens=64)
        for order in (small[:2], small[1::-1]):
            for first in range(1, layers):
                choice = engine.explicit(header, (first, layers - first), order)
                # What misses by more than the margin and what is uncertain is not worth a load.
                if min(choice.spare_mib) < -max(card.margin_mib for card in order) - 300:
                    continue
                tried.setdefault(tuple(card.uuid for card in order), set()).add(choice.placement.tensor_split)
                told = engine.bench(model, choice, tokens=64, times=2)
                case = {"order": [card.uuid for card in order], "tensor_split": [first, layers - first], **told}
                found.append(case)
                print(case, flush=True)
                document("search", found, ours=_named(ours) | mine, free_mib=left)
    best = max((case["tg64"]["tokens_per_second"] for case in found if "tg64" in case), default=None)
    own = mine.get("tg64", {}).get("tokens_per_second")
    share = round(100 * own / best, 1) if best and own else None
    verdict = {"best": best, "share_of_best_percent": share, "passed": share is not None and share >= BEST_PERCENT}
    document("search", found, ours=_named(ours) | mine, free_mib=left, **verdict)
    print(verdict, flush=True)


def _named(choice: placement.Choice) -> dict[str, Any]:
    return {"order": [card.uuid for card in choice.cards], "tensor_split": list(choice.placement.tensor_split)}


PARTS: dict[str, Callable[[], None]] = {
    "memory": memory,
    "speed": speed,
    "paced": paced,
    "load": load,
    "modes": modes,
    "fit": fit,
    "kld": kld,
    "search": search,
    "two": two,
    "switch": switch,
}


if __name__ == "__main__":
    sys.exit(proof.run_parts(PARTS, __doc__))
