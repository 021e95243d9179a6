"""GPT-2 124M on one CUDA device, in two calls: where a step's time goes, speed and MFU beside nanoGPT; then the tests
that need a GPU, resume, memory and text.

    python -m benchmarks.gpu --parts ready micro train_speed speed --seconds 480 --nanogpt CLONE --record
    python -m benchmarks.gpu --parts tests resume memory generate --seconds 240 --nanogpt CLONE --record
    python -m benchmarks.gpu --tiny        # the same path on any machine, with a small model

Type them in the repository's root. A part that fails is told in a sentence, and the others go on. Figures are printed,
and with --record kept in docs/benchmarks.json and docs/benchmarks.md, as soon as each is measured: if a part takes too
long or the command is killed, what was measured is there. Copy the two files if the machine is not yours. A part gets
what is left of --seconds, 240 at most, and the parts for which nothing is left are named. What they should take on an
H200, start-up and compilation included, in seconds (worked out, not measured): {expected}. Compiled code is kept on the
disk by torch, so a second call that repeats a part takes less.

`fit` trains (bf16-mixed, compiled blocks, fused AdamW, block 1024) on bytes under GPT-2's vocabulary size, 50,257
padded to 50,304: speed does not depend on what the ids mean, and nothing is downloaded. The curve is of --text;
without one it is of the embedded corpus, some 320 kB that 124M parameters learn by heart within the time: it then
shows that training works, not how well the model predicts. The last line is JSON. It needs torch with CUDA, a C
compiler, Python's headers and what `pip install` of this project brings; `transformers` and a clone of nanoGPT (its
model.py) for the peers, pytest and pytest-timeout for the tests. What is missing is said at once.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import gpu_needs  # nothing else of ours here: it says what is missing before the others are imported

#: Seconds that each part should take, in the order of their value. Most is compilation, 15 to 60 seconds a network.
EXPECTED = {
    "ready": 40,
    "micro": 150,
    "train_speed": 210,
    "speed": 60,
    "tests": 150,
    "resume": 60,
    "memory": 50,
    "generate": 30,
    "curve": 160,
}
#: Fewer seconds than any part takes.
LEAST = 15


def measure(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a part and its seconds, and why it did not come to its end if it did not."""
    from benchmarks.gpu_parts import PARTS, FailedError

    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for figures in PARTS[part](Path(folder), options):
                found |= figures
                keep(part, {**found, "unfinished": True}, options)
    except Exception as error:  # whatever it is, the other parts go on
        kind = "" if isinstance(error, FailedError) else f"{type(error).__name__}: "
        words = f"failed: {kind}{error}".split()
        found["failed"] = " ".join("PATH" if "/" in word else word for word in words)[:400]
    found["seconds"] = round(time.perf_counter() - start, 1)
    keep(part, found, options)
    return found


def keep(part: str, figures: dict[str, Any], options: argparse.Namespace) -> None:
    """With --record, put figures on the page; a part that came to its end stays until another does."""
    from benchmarks import report
    from lit_gpt.callbacks.run_folder import read_json

    if not options.record:
        return
    name = f"gpu tiny {part}" if options.tiny else f"gpu {part}"
    earlier = read_json(report.FIGURES).get(name, {}).get("figures", {"failed": ""})
    if is_whole(figures) or not is_whole(earlier):
        report.keep(name, figures, lines(part, figures), report.DEVICE)


def is_whole(figures: dict[str, Any]) -> bool:
    """Whether a part came to its end."""
    return not {"failed", "unfinished"} & figures.keys()


def lines(part: str, figures: dict[str, Any]) -> list[str]:
    """The page's lines."""
    from benchmarks import train_speed

    if part == "train_speed":
        return train_speed.table(figures)
    return [f"- {name.replace('_', ' ')}: {value}" for name, value in figures.items()]


def parse() -> argparse.Namespace:
    """The options of the command line."""
    expected = ", ".join(f"{part} {seconds}" for part, seconds in EXPECTED.items())
    about = (__doc__ or "").format(expected=expected)
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="keep the figures in docs/benchmarks.json")
    parser.add_argument(
        "--parts", nargs="+", choices=EXPECTED, default=list(EXPECTED), help="these alone, in this order"
    )
    parser.add_argument("--tiny", action="store_true", help="a small model, on whatever there is")
    parser.add_argument("--nanogpt", type=Path, help="folder of a clone of nanoGPT, or of its model.py")
    parser.add_argument("--text", type=Path, help="text of the curve, best of 100 MB or more; else the embedded corpus")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the time of all parts together")
    return parser.parse_args()


def refuse_what_cannot_run(options: argparse.Namespace) -> None:
    """End with a sentence where nothing would be measured; say what is missing where some parts would fail."""
    if absent := gpu_needs.missing_packages():
        sys.exit(gpu_needs.refusal(absent))
    if options.record and not Path("docs").is_dir():
        sys.exit("there is no folder docs here to keep figures in: type this in the repository's root.")
    print(f"missing: {', '.join(gpu_needs.missing(options.nanogpt)) or 'nothing'}", flush=True)

    import torch

    if not options.tiny and not torch.cuda.is_available():
        sys.exit("there is no CUDA device: use --tiny to try the path without one.")


def main() -> None:
    """Run the parts, keep the figures of each and print them all."""
    options = parse()
    end = time.monotonic() + options.seconds
    refuse_what_cannot_run(options)

    from benchmarks import gpu_parts

    gpu_parts.DEADLINE[0] = end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part's processes end too
    found = {}
    for part in options.parts:
        if gpu_parts.seconds_left() < LEAST:
            print(f"{part}: no time is left", flush=True)
            continue
        found[part] = measure(part, options)
        print(f"{part}: {json.dumps(found[part])}", flush=True)
    print(json.dumps({"benchmark": "gpu", **found}))
    sys.exit(any("failed" in figures for figures in found.values()))


if __name__ == "__main__":
    main()
