"""`polydecode check MODULE [--model DIR]`: exit status 1 and the first step that differs, where anything does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from decoding.check.bench import Bench, ModelBench, TableBench
from decoding.check.cases import subjects
from decoding.check.checks import Finding, Passed, Result, checked
from decoding.contract.params import Request
from decoding.contract.plugin_loading import load_plugins
from decoding.contract.plugin_samples import NoSample
from decoding.contract.plugins import Plugin, PluginError
from decoding.strategies import Builder


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing found; 1: something is; 2: there is nothing to try."""
    options = _parser().parse_args(arguments)
    try:
        plugins = load_plugins(options.plugin)
        with torch.inference_mode():
            bench: Bench = ModelBench(options.model) if options.model else TableBench()
            build = Builder(plugins, bench.vocabulary.size)
            found = [_report(plugin, bench, build, options.requests) for plugin in plugins.plugins]
    except (NoSample, OSError, PluginError) as error:
        print(f"polydecode check: {error}", file=sys.stderr)
        return 2
    return 1 if any(found) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polydecode check",
        description="Runs a plugin's strategies, steps and judges alone, in a crowd, preempted, cached and cancelled, "
        "and tells the first step that differs.",
    )
    parser.add_argument("plugin", nargs="+", help="Python file, module or entry point, as --plugin takes it")
    parser.add_argument("--model", default="", help="directory of a model; default: a table, exact and fast")
    parser.add_argument("--requests", type=int, default=8, help="requests of each strategy, step and judge")
    return parser


def _report(plugin: Plugin, bench: Bench, build: Builder, count: int) -> bool:
    """Prints as it goes. Whether anything was found."""
    print(f"{plugin.name} {plugin.version}")
    has_found, last = False, ""
    for subject, result in checked(bench, build, list(subjects(plugin, bench.vocabulary, count))):
        if subject.name != last:
            print(f"  {subject.kind} {subject.name}, {len(subject.requests)} requests")
            last = subject.name
        print(f"    {result.condition:<16} {_line(result)}", flush=True)
        has_found |= isinstance(result, Finding)
    return has_found


def _line(result: Result) -> str:
    if isinstance(result, Passed):
        return f"the same ({result.note})" if result.note else "the same"
    return f"FAILED in step {result.step}: {result.why}\n{'':21}{_shown(result.request)}"


def _shown(request: Request) -> str:
    logits = request.logits
    steps = "".join(f", {step}" for step in logits.plugin_steps)
    return (
        f"of the request {request.strategy}{steps}, {len(request.prompt_ids)} prompt tokens, "
        f"temperature {logits.temperature:g}, seed {request.seed}"
    )


if __name__ == "__main__":
    sys.exit(main())
