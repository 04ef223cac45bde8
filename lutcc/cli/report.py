"""Show what was measured as a page to read.

`lutcc report tuning` renders tuning logs: for each kernel the default and the tuned time, what the
chosen config changes, the part of the roofline it achieves, the tuning curve and every trial.

`lutcc report training` renders logs of training runs: accuracy of each method with its spread over
seeds, what it gains or loses against exact training, the compute and the communication it saves,
loss curves.

`lutcc report footprint` renders what a compressed model takes: bits and errors of each layer,
shares of memory of weights and activations, before and after.

`lutcc report accuracy` renders logs of accuracies and times: what each method keeps of the exact
network's accuracy against what a call takes, with the spread over seeds and what no other beats.
"""

from __future__ import annotations

import argparse

from lutcc.cli import report_accuracy, report_footprint, report_training, report_tuning
from lutcc.cli.console import Console
from lutcc.cli.options import shared_options

_KINDS = {
    "tuning": ("Show tuning logs: gains, curves, roofline.", report_tuning),
    "training": ("Show training logs: accuracy, savings, curves.", report_training),
    "footprint": ("Show a compressed model: bits, errors, memory.", report_footprint),
    "accuracy": ("Show logs of accuracies: what methods keep and take.", report_accuracy),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the kinds of reports."""
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    for name, (text, module) in _KINDS.items():
        kind = kinds.add_parser(
            name, parents=[shared_options(nested=True)], help=text, description=text
        )
        module.add_arguments(kind)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the report, and print its main numbers."""
    return _KINDS[args.what][1].run(args, console)
