"""A good model of your images: network and training searched together, then trained on all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_KNOBS = (
    "learning_rate,weight_decay,momentum,label_smoothing,dropout,batch_size,layers,width,growth"
)
_RANGES = ("width=8:64:log",)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    data: Annotated[
        str,
        typer.Option(
            help="Your images, a folder with a folder for each class or an npz file; or sample, "
            "fashion_mnist, mnist, kmnist, cifar10, cifar100, svhn."
        ),
    ] = "sample",
    budget_minutes: Annotated[
        float, typer.Option(help="Device minutes in all: the search and the last training.")
    ] = 30.0,
    searcher: Annotated[
        str, typer.Option(help="By our own races freeze-thaw finds most for the minutes.")
    ] = "freeze-thaw",
    epochs: Annotated[int, typer.Option(help="Full length of a training.")] = 12,
    augment: Annotated[
        bool, typer.Option(help="Shift training images and, where it is harmless, mirror them.")
    ] = False,
    knobs: Annotated[str, typer.Option(help="Which to tune; see the README for all.")] = _KNOBS,
    knob: Annotated[
        list[str] | None,
        typer.Option(help="A range, NAME=LOW:HIGH[:log], or a choice, NAME=A,B,C. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the searcher and the trainings.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    slots: Annotated[
        int | None, typer.Option(help="Trials at once on each device. Default: as measures best.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets. Default: the user's cache.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results. Default: runs/…")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the search in this folder, and to the model.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print model.json instead of words.")
    ] = False,
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Search for the best network and training, train it on all images, test it once, export it."""
    # Here and not above: `--help` needs none of it, and should not wait for it.
    from scripts import tuning
    from scripts.errors import plain_errors, refuse_others
    from scripts.model_search import make_model

    with plain_errors("automl"):
        if resume is not None:
            refuse_others(context, {"resume", "quiet", "as_json"}, "--resume")
            folder = resume
            store, request = tuning.reopen_model(resume)
        else:
            asked = {
                "seed": seed,
                "seeds": 1,
                "budget_minutes": budget_minutes,
                "device": device,
                "grid_points": None,
                "min_epochs": None,
                "eta": 3,
                "shared_start": 0,
                "epochs": epochs,
                "slots": slots,
                "data": data,
                "data_root": str(data_root or ""),
                "augment": augment,
                "landscape": None,
            }
            named = {name.strip() for name in knobs.split(",")}
            ranges = [r for r in _RANGES if r.partition("=")[0] in named]
            ranges += knob or []
            store, request, folder = tuning.create_model(asked, searcher, knobs, ranges, out)
        make_model(store, request, folder, Console(stderr=as_json), is_quiet=quiet, as_json=as_json)


if __name__ == "__main__":
    app()
