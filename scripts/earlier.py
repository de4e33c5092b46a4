"""Earlier studies that a race begins with: whether their scores are any here, and what is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.racing import Request
from tuner.space import SearchSpace
from tuner.store import Store
from tuner.trial import Trial
from tuner.warm_start import EarlierStudy, Taken, in_words, read_study, take_over


def check_folders(folders: Sequence[Path], out: Path | None) -> None:
    """Raise ValueError for the race's own folder, and for one that is named twice."""
    places = [(f.parent if f.is_file() else f).resolve() for f in folders]
    for folder, place in zip(folders, places, strict=True):
        if out is not None and out.resolve() == place:
            raise ValueError(
                f"--from {folder} is where --out is to be; to go on with that race: --resume {out}"
            )
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"--from names one twice: {', '.join(map(str, folders))}")


def read_earlier(
    folders: Sequence[Path], space: SearchSpace, request: Request
) -> tuple[list[Trial], list[str]]:
    """The trials that a race takes over from earlier ones, and a line about each of those.

    Raises ValueError where a study cannot be read, is of other data, or has nothing that fits.
    """
    studies = [read_study(folder) for folder in folders]
    names = [study.name for study in studies]
    if len(set(names)) < len(names):
        raise ValueError(
            f"--from: results are told apart by their folder's name, of which two are the same: "
            f"{', '.join(map(str, folders))}"
        )
    for study in studies:
        _refuse_other_data(study, request)
    taken = take_over(studies, space, request.epochs)
    lines = [_line(study, one, request) for study, one in zip(studies, taken, strict=True)]
    return [trial for one in taken for trial in one.trials], lines


def begin_with(store: Store, trials: Sequence[Trial], lines: Sequence[str]) -> None:
    """Have every run of a new race begin with these trials, and keep the lines about them."""
    for row in store.runs():
        history = store.history(row)
        for trial in trials:
            history.adopt(trial)
    store.set_meta("earlier", list(lines))


def _refuse_other_data(study: EarlierStudy, request: Request) -> None:
    if not study.request:
        raise ValueError(
            f"{study.path} does not say what its scores are of: it is a library's study and no "
            "race of this program"
        )
    if "command" in study.request:
        raise ValueError(
            f"{study.path} is a command's: its scores are what that says, and none of this race's"
        )
    there, here = _what(study.request), _what(vars(request))
    if there != here:
        raise ValueError(
            f"{study.path} was run with {there} and this race is with {here}: a score of the one "
            "is none of the other; usually a flag was forgotten"
        )


def _what(request: Mapping[str, Any]) -> str:
    if request.get("landscape"):
        return f"--landscape {request['landscape']}"
    return f"--data {request.get('data')}"


def _line(study: EarlierStudy, taken: Taken, request: Request) -> str:
    """How much was taken over, what was left out, and how the two races' trainings differ."""
    path = Path(study.path)
    place = path.parent if path.name == "study.sqlite" else path
    best, count = taken.best, len(taken.trials)
    score = "none with a score" if best is None else f"the best {best.score:.4f}"
    text = f"{count} result{'' if count == 1 else 's'} from {place}, {score}"
    if taken.left_out:
        text += f"; left out: {in_words(taken.left_out)}"
    if differences := _differences(study.request, request):
        text += f". Its scores and minutes may not compare with this race's: {differences}"
    return text


def _differences(then: Mapping[str, Any], request: Request) -> str:
    settings = [("--epochs", then.get("epochs"), request.epochs)]
    if request.landscape is None:
        devices = _kinds(then.get("devices"), then.get("device")), ", ".join(request.kinds())
        settings += [("--augment", then.get("augment"), request.augment), ("device", *devices)]
    found = [f"{what} was {old} and is {new}" for what, old, new in settings if old != new]
    return ", ".join(found)


def _kinds(found: Sequence[str] | None, wanted: Any) -> str:
    """The kind of device: as it was found when workers started, or as it is to be had now."""
    from tuner.workers.devices import find_devices

    if found is None:
        try:
            found = find_devices(str(wanted))
        except ValueError:  # of another machine
            found = [str(wanted)]
    return ", ".join(sorted({device.partition(":")[0] for device in found}))
