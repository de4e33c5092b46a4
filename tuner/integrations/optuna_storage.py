"""Finding an Optuna study by the URL of its storage, without a change to it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import optuna
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from tuner.foreign import open_regular
from tuner.reader import MOST_BYTES


def load_study(url: str, study_name: str | None) -> optuna.Study:
    """The study in a storage, by its name where it holds several; a file of SQLite's is only read.

    Raises ValueError where there is no such storage or study; a password is not in its words.
    """
    shown = url
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
        storage = _only_read(parsed).render_as_string(hide_password=False)
        names = optuna.get_all_study_names(storage)
        if study_name is None and len(names) == 1:
            study_name = names[0]
        if study_name not in names:
            asked = "no study_name was given" if study_name is None else f"not {study_name!r}"
            raise ValueError(f"{shown} holds the studies {names}, and {asked}")
        return optuna.load_study(study_name=study_name, storage=storage)
    except (SQLAlchemyError, RuntimeError, ImportError, KeyError) as error:
        raise ValueError(f"{shown} cannot be read as a storage of Optuna's: {error}") from error


def _only_read(url: URL) -> URL:
    """The same storage, as one that is not made where it is not there; another one as it is."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return url
    path = Path(url.database).absolute()
    open_regular(path, MOST_BYTES).close()
    return url.set(database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
