"""Tune a CNN: with no flags, a race of grid, random and Bayesian search on equal device minutes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_RESUME_FLAGS = {"resume", "budget_minutes", "cluster", "page", "quiet", "as_json"}
_REPLAY_FLAGS = {
    *("searchers", "budget_minutes", "seeds", "seed", "slots", "grid_points", "shared_start"),
    *("fidelity", "min_epochs", "eta", "confirm", "stop"),
    *("landscape", "out", "page", "quiet", "as_json", "earlier"),
}


_COMMAND_ALONE = {
    *("space", "metric", "minimize", "replicates", "infeasible_exit", "memory_gib"),
    "hung_after_minutes",
}
_COMMAND_FLAGS = {
    *_COMMAND_ALONE,
    *("searchers", "budget_minutes", "seeds", "seed", "slots", "grid_points", "shared_start"),
    *("fidelity", "min_epochs", "eta", "confirm", "stop", "epochs", "device", "cluster"),
    *("command", "out", "page", "quiet", "as_json"),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    searchers: Annotated[
        str,
        typer.Option(
            help="Comma-separated; one alone is a plain tuning run. random+asha is a searcher "
            "with a fidelity of its own. With --command bayes unless you say otherwise."
        ),
    ] = "grid,random,bayes",
    fidelity: Annotated[
        str,
        typer.Option(help="How long trials train: full, median, sh, asha, asha-stop or hyperband."),
    ] = "full",
    min_epochs: Annotated[
        int | None, typer.Option(help="The first rung. Default: 2, or a 27th of --epochs.")
    ] = None,
    eta: Annotated[
        int, typer.Option(help="One in so many goes on from a rung.")
    ] = 3,  # tuner.entry's ETA, which `--help` would have to load
    budget_minutes: Annotated[
        float, typer.Option(help="Device minutes, for each searcher and seed.")
    ] = 1.0,
    epochs: Annotated[
        int,
        typer.Option(
            help="Full length of a training. With --command as long as it goes on, unless you say."
        ),
    ] = 6,
    seeds: Annotated[int, typer.Option(help="How many seeds each searcher runs with.")] = 1,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    data: Annotated[
        str,
        typer.Option(
            help="sample, fashion_mnist, mnist, kmnist, cifar10, cifar100 or svhn; or your own: a "
            "folder with a folder of images for each class, or an npz file."
        ),
    ] = "sample",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets. Default: the user's cache.")
    ] = None,
    augment: Annotated[
        bool, typer.Option(help="Shift training images and, where it is harmless, mirror them.")
    ] = False,
    knobs: Annotated[
        str, typer.Option(help="Which to tune; see the README for all.")
    ] = "learning_rate,weight_decay",
    knob: Annotated[
        list[str] | None,
        typer.Option(
            help="A range, NAME=LOW:HIGH[:log], or a choice, NAME=A,B,C; of a knob that is not in "
            "--knobs too, which adds it. Repeatable."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Use the devices of a Ray cluster, by its address, or auto; see docs/cluster.md."
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            help="Trials at once on each device. Default: as measures best; of a --command and in "
            "a replay one."
        ),
    ] = None,
    grid_points: Annotated[
        int | None, typer.Option(help="Points a side of the first lattice. Default: by budget.")
    ] = None,
    shared_start: Annotated[
        int, typer.Option(help="So many first trials are the same for all searchers of a seed.")
    ] = 0,
    confirm: Annotated[
        int,
        typer.Option(
            help="Keep minutes back to train so many of the best settings again, and choose by "
            "the mean."
        ),
    ] = 0,
    stop: Annotated[
        str,
        typer.Option(
            help="never, or auto: end a search when what its minutes could still find is less "
            "than the noise."
        ),
    ] = "never",
    landscape: Annotated[
        str | None,
        typer.Option(help="Replay on a landscape instead, by name or by file."),
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Begin with the results of an earlier run, by its folder. They cost nothing. "
            "Repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: runs/…")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder; only the budget, and the address of a "
            "cluster, may change."
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page", help="Show the race in a browser while it runs.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print summary.json instead of a table.")
    ] = False,
    command: Annotated[
        str | None,
        typer.Option(
            help="Tune a program instead: 'python train.py --lr {learning_rate}'. Needs --space "
            "and --metric; see docs/commands.md."
        ),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="With --command: a TOML file of its knobs.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="With --command: what its lines say, such as 'acc=([0-9.]+)'."),
    ] = None,
    minimize: Annotated[
        bool, typer.Option("--minimize", help="With --command: a lower score is better.")
    ] = False,
    replicates: Annotated[
        int | None,
        typer.Option(help="With --command: run it so many times for a setting; the median counts."),
    ] = None,
    infeasible_exit: Annotated[
        list[int] | None,
        typer.Option(help="With --command: an exit code that blames the setting. Repeatable."),
    ] = None,
    memory_gib: Annotated[
        float | None, typer.Option(help="With --command: what a trial may take of the memory.")
    ] = None,
    hung_after_minutes: Annotated[
        float | None,
        typer.Option(
            help="With --command: end a program that prints nothing for so long. Default: twenty "
            "times its longest silence so far, at least a minute, and never before a score."
        ),
    ] = None,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Race searchers on equal device minutes and report what each found.

    Where people do the trials: tune.py ask, tell, best, import or list STUDY, each with --help.
    """
    # Here and not above: `--help` needs none of it, and should not wait for it.
    from scripts import command as commands
    from scripts import tuning
    from scripts.errors import given, plain_errors, refuse_others

    console = Console(stderr=as_json)
    asked = {
        "seed": seed,
        "seeds": seeds,
        "budget_minutes": budget_minutes,
        "device": device,
        "cluster": cluster,
        "grid_points": grid_points,
        "min_epochs": min_epochs,
        "eta": eta,
        "shared_start": shared_start,
        "confirm": confirm,
        "stop": stop,
    }
    with plain_errors("tune"):
        chosen = given(context)
        if resume is not None:
            refuse_others(context, _RESUME_FLAGS, "--resume")
            folder = resume
            budget = budget_minutes if "budget_minutes" in chosen else None
            store, request = tuning.reopen(resume, budget, cluster)
        elif command is not None:
            refuse_others(context, _COMMAND_FLAGS, "--command")
            asked |= {
                "mode": "min" if minimize else "max",
                "searchers": searchers if "searchers" in chosen else "bayes",
                "epochs": epochs if "epochs" in chosen else None,
                "slots": slots or 1,
                "memory_gib": memory_gib,
                "hung_after_minutes": hung_after_minutes,
                "replicates": replicates,
                "infeasible_exits": tuple(infeasible_exit or ()),
            }
            store, request, folder = commands.create(asked, command, metric, space, fidelity, out)
        else:
            if landscape is not None:
                refuse_others(context, _REPLAY_FLAGS, "--landscape")
            if chosen & _COMMAND_ALONE:
                raise ValueError("--space, --metric and what belongs to them need a --command")
            asked |= {
                "epochs": epochs,
                "slots": slots,
                "data": data,
                "data_root": str(data_root or ""),
                "augment": augment,
                "landscape": landscape,
            }
            store, request, folder = tuning.create(
                asked, searchers, fidelity, knobs, knob or [], out, earlier or []
            )
        go = commands.search if commands.is_command(request) else tuning.race
        go(store, request, folder, console, is_quiet=quiet, as_json=as_json, page=page)


def run() -> None:
    """The race; or what a lab asks and tells, where that is the first word."""
    from scripts import lab

    (lab.app if sys.argv[1:2] and sys.argv[1] in lab.COMMANDS else app)()


if __name__ == "__main__":
    run()
