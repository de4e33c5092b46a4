"""Says what is wrong with a run, and what can be saved; without a folder, looks at the machine.

Exit code 0: fine; 1: damage was found; 2: wrong use. Nothing in the folder is ever written.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_MIB = 1 << 20
_PACKAGES = (
    *("tuner", "torch", "torchvision", "numpy", "scipy", "safetensors", "matplotlib", "rich"),
    *("typer", "optuna", "starlette", "plotly"),
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def doctor(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Of a run, such as runs/NAME, or its .sqlite file. Default: the machine."
        ),
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="Machine: the folder in which runs are to lie.")
    ] = Path("runs"),
    device: Annotated[str, typer.Option(help="Machine: auto, cpu, cuda or cuda:N.")] = "auto",
    data: Annotated[str, typer.Option(help="Machine: the data set to train on.")] = "sample",
    data_root: Annotated[
        Path | None, typer.Option(help="Machine: folder of the data sets.")
    ] = None,
    need_mib: Annotated[
        int, typer.Option(min=1, help="Machine: room that the run will need, in MiB.")
    ] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what is wrong, how bad it is, and what can be saved; exit code 1 for damage."""
    from scripts.errors import plain_errors
    from scripts.workers import installed_versions
    from tuner.doctor import Severity, examine

    with plain_errors("doctor"):
        versions = installed_versions(*_PACKAGES)
        if folder is not None:
            try:
                findings = examine(folder, versions)
            except PermissionError as error:
                raise ValueError(f"{error.filename} may not be read by you") from error
        else:
            from models.machine import check_training
            from tuner.machine import check_machine

            findings = list(check_machine(runs, need_mib * _MIB, versions))
            findings += check_training(device, data, data_root)
    counts = Counter(finding.severity for finding in findings)
    is_fine = not counts[Severity.DAMAGE]
    if as_json:
        told = [
            {"severity": f.severity.value, "what": f.what, "advice": f.advice} for f in findings
        ]
        print(json.dumps({"fine": is_fine, "findings": told}, indent=1, ensure_ascii=False))
    else:
        console = Console()
        for finding in findings:
            line = f"{finding.severity.value}: {finding.what}"
            advice = f" – {finding.advice}" if finding.advice else ""
            console.print(line + advice, soft_wrap=True, markup=False, highlight=False)
        console.print(_last_line(counts, is_fine), soft_wrap=True)
    raise typer.Exit(0 if is_fine else 1)


def _last_line(counts: Counter[Any], is_fine: bool) -> str:
    told = ", ".join(f"{count} {severity.value}(s)" for severity, count in counts.items())
    return f"{'Fine' if is_fine else 'There is damage'}: {told}."


if __name__ == "__main__":
    app()
