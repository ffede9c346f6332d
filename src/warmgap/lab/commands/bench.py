"""`warmgap bench`: the regret of every warm-up rule on a suite of workloads."""

import argparse
import shlex
from pathlib import Path

INTERRUPTED = 130

HELP = "train a suite of workloads with every rule and a grid of hand-tuned lengths; finished runs are skipped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to train of the suite, and where."""
    parser.add_argument("--suite", default="full", metavar="NAME", help="full or mini (default: full)")
    parser.add_argument(
        "--split", default="all", metavar="NAME", help="development, test or all of the workloads (default: all)"
    )
    parser.add_argument("--workloads", nargs="+", default=None, metavar="NAME", help="these workloads only")
    parser.add_argument(
        "--rules",
        nargs="+",
        default=None,
        metavar="RULE",
        help="these rules and lengths only, such as auto linear:10%% none (default: the suite's)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=None, metavar="SEED", help="seeds (default: 0 1 2)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        metavar="N",
        help="runs at a time (default: one a core, or one where there is a GPU)",
    )
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="then change floor, averaging, steps, peak rate and target loss of these workloads, one after the other",
    )
    parser.add_argument(
        "--report", type=Path, default=None, metavar="FILE", help="train nothing: table and pictures of a results.json"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="folder of runs, results and pictures (default: runs/bench, with --report the file's own)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train; exit code 0, 1 where a run failed, 130 where it was interrupted."""
    from rich.console import Console

    from warmgap.lab.bench import RESULTS_FILE, SUITES, Plan, Results, changed, choose, share_of, train_bench
    from warmgap.lab.bench_report import judge, write_bench_report
    from warmgap.lab.errors import UserError

    console = Console()
    if arguments.report is not None:
        write_bench_report(Results.load(arguments.report), arguments.output or arguments.report.parent, console)
        return 0
    if arguments.suite not in SUITES:
        raise UserError(f"Unknown suite {arguments.suite!r}: choose one of {', '.join(SUITES)}.")
    workloads, methods, seeds = SUITES[arguments.suite]
    methods, seeds = arguments.rules or methods, arguments.seeds or seeds
    folder = arguments.output or Path("runs/bench")
    command = _command(arguments)
    chosen = choose(workloads, arguments.split, arguments.workloads)
    plan: Plan = [(workload, methods) for workload in chosen]
    code = train_bench(plan, seeds, folder, command=command, jobs=arguments.jobs, console=console)
    if code != INTERRUPTED and arguments.sensitivity:
        judged = {workload.name: workload for workload in judge(Results.load(folder / RESULTS_FILE))[0]}
        lengths = [method for method in methods if share_of(method) is not None]
        more = [
            pair
            for workload in chosen
            if workload.name in judged
            for pair in changed(workload, judged[workload.name].best_loss, lengths)
        ]
        code = train_bench([*plan, *more], seeds, folder, command=command, jobs=arguments.jobs, console=console)
    # A rule that could not go on is told in the table; it must not keep the table from being written.
    if code != INTERRUPTED and (folder / RESULTS_FILE).exists():
        write_bench_report(Results.load(folder / RESULTS_FILE), folder, console)
    return code


def _command(arguments: argparse.Namespace) -> str:
    """The command line that makes this bench; how many jobs it had changes nothing."""
    words = ["warmgap", "bench"]
    for name in ("suite", "split", "workloads", "rules", "seeds", "output"):
        value = getattr(arguments, name)
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join([*words, "--sensitivity"] if arguments.sensitivity else words)
