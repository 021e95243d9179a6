"""Muon's work on N processes: what each one computes and sends, counted, and the time of two processes, measured.

    python -m benchmarks.muon [--preset gpt2] [--rounds 8] [--record]

The counts are those of the plan that training uses (`lit_gpt.muon_shared.plan_of`), for Newton-Schulz steps in
bfloat16 and machines of 8 devices. Under ddp the processes of a machine share the work, and send the updates within it;
under fsdp2 all do, and send parts of the gradients and of the updates. "All" is what ddp would send if all processes
shared. One process computes what each process would, if the work were not shared.

Timed are steps of the optimizer on 4 blocks of 384 channels, in two processes of one thread that meet on gloo. Rounds
of shared and of repeated steps take turns. CPU time is that of a process and all its threads. The last line is JSON.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from benchmarks import report
from lit_gpt import muon_shared
from lit_gpt.model import GPT, GPTConfig
from lit_gpt.muon_shared import flops_of_busiest, plan_of, sent_replicated, sent_sharded
from lit_gpt.optim import OptimizerConfig, build_optimizer, parameter_groups

RANKS = (1, 2, 4, 8, 16, 32, 64)
TIMED = GPTConfig(n_layer=4, n_head=6, n_embd=384, block_size=64, vocab_size=257)
MACHINE = 8  # devices
BFLOAT16 = 2  # bytes


def counted(preset: str) -> list[list[str]]:
    """The cells of the table, a row for each number of processes: what the busiest computes and sends for a step."""
    with torch.device("meta"):
        net = GPT(GPTConfig.from_preset(preset, vocab_size=50257))
    shapes = tuple((p.size(0), p.size(1)) for _, p in parameter_groups(net)["matrices"])
    return [_row(shapes, ranks) for ranks in RANKS]


def _row(shapes: tuple[tuple[int, int], ...], ranks: int) -> list[str]:
    everyone, machine, alone = (plan_of(shapes, n) for n in (ranks, min(ranks, MACHINE), 1))
    work, sent = (
        [flops_of_busiest(plan) for plan in (machine, everyone)],
        [sent_replicated(machine), sent_sharded(everyone), sent_replicated(everyone)],
    )
    cells = [f"{flops / 1e9:,.0f} ({flops / flops_of_busiest(alone):.1%})" for flops in work]
    cells += [f"{elements * BFLOAT16 / 1e6:,.0f}" for elements in sent]
    return [str(ranks), str(-(-ranks // MACHINE)), cells[0], cells[2], cells[1], cells[3], cells[4]]


def table(rows: list[list[str]]) -> list[str]:
    """The counts as a Markdown table."""
    head = ["processes", "machines", "GFLOP, ddp", "MB sent, ddp", "GFLOP, fsdp2", "MB sent, fsdp2", "MB sent, all"]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


# ---- time


def timed(rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, shared and repeated: medians over rounds, the smallest and the largest, and CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        children = [_fork(rank, rounds, Path(folder)) for rank in range(2)]
        assert not any(os.waitpid(child, 0)[1] for child in children), "a process failed: see its error above"
        return json.loads((Path(folder) / "times").read_text())


def _fork(rank: int, rounds: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        torch.set_num_threads(1)
        distributed.init_process_group("gloo", f"file://{folder / 'meeting'}", timedelta(seconds=300), 2, rank)
        found = _measured(rounds)
        if rank == 0:
            (folder / "times").write_text(json.dumps(found))
        status = 0
    finally:
        os._exit(status)


def _measured(rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = GPT(TIMED)
    optimizer = build_optimizer(net, OptimizerConfig(kind="muon"))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    times: dict[str, list[tuple[float, float]]] = {"shared": [], "repeated": []}
    for round_ in range(rounds + 1):  # the first warms up
        for name, way in (("shared", None), ("repeated", _repeated)):
            took = _time_of(optimizer.step, way)
            if round_:
                times[name].append(took)
    return {name: _summary(found) for name, found in times.items()}


@contextmanager
def _repeated() -> Iterator[None]:
    shared = muon_shared._begin_replicated
    muon_shared._begin_replicated = lambda shapes, directions, *_: muon_shared._alone(
        plan_of(shapes, 1), directions, torch.float32
    )
    try:
        yield
    finally:
        muon_shared._begin_replicated = shared


def _time_of(step: Callable[[], Any], way: Any, steps: int = 3) -> tuple[float, float]:
    """Wall and CPU milliseconds of a step."""
    distributed.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    with way() if way else tempfile.TemporaryFile():
        for _ in range(steps):
            step()
    distributed.barrier()
    return (time.perf_counter() - wall) * 1e3 / steps, (time.process_time() - cpu) * 1e3 / steps


def _summary(found: list[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*found, strict=True)
    names = {"ms": statistics.median(walls), "least": min(walls), "most": max(walls), "cpu_ms": statistics.median(cpus)}
    return {name: round(value, 1) for name, value in names.items()}


def main() -> None:
    """Count, measure and print."""
    parser = report.parser(__doc__, rounds=8)
    parser.add_argument("--preset", default="gpt2", help="the network whose weights are counted, as in fit --preset")
    options = parser.parse_args()
    rows = counted(options.preset)
    lines = table(rows)
    print("\n".join(lines), flush=True)
    times = timed(options.rounds)
    shared, repeated = times["shared"], times["repeated"]
    ratios = {name: round(repeated[name] / shared[name], 2) for name in ("ms", "cpu_ms")}
    lines += ["", f"A step of 2 processes of one thread on {TIMED.n_layer} blocks of {TIMED.n_embd} channels:", ""]
    lines += [
        f"- {name}: {t['ms']} ms ({t['least']} to {t['most']}), {t['cpu_ms']} ms of CPU time"
        for name, t in times.items()
    ]
    lines += [f"- repeated over shared: {ratios['ms']} in time, {ratios['cpu_ms']} in CPU time"]
    print("\n".join(lines[-3:]), flush=True)
    report.finish("muon", {"counts": rows, "times": times, "ratios": ratios}, lines, options)


if __name__ == "__main__":
    main()
