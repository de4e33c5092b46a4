"""TensorBoard: a run for each trial, with its curve, its knobs and what became of it.

`tensorboard --logdir DIR` shows the curves under Scalars and all trials under HParams.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tuner.integrations.trial_log import (
    Search,
    TrialLog,
    TrialLogger,
    facts_of,
    knobs_of,
    log_place,
    numbers_of,
    paid_minutes,
    trial_name,
)
from tuner.trial import Observation, Trial, TrialState

try:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import api_pb2, metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
except ImportError as error:
    raise ValueError("TensorBoard is not installed: pip install 'tuner[tensorboard]'") from error


def callback(directory: str | Path) -> TrialLogger:
    """Logs into a folder of `directory` for each trial; for `tune(…, callbacks=[…])`.

    Give each study a directory of its own: trials are known by searcher, seed and number. Where a
    study goes on, trials whose log has an end are left as they are.
    """
    return TrialLogger(_Begin(Path(directory)))


def log_study(place: str | Path, directory: str | Path) -> int:
    """Log a study or a finished race from its folder into `directory`; how many trials it has.

    Raises ValueError where there is no study, or none that can be read.
    """
    return log_place(callback(directory), place)


class _Begin:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, search: Search, trial: Trial) -> TrialLog | None:
        folder = self._directory / search.name / trial_name(trial)
        return None if _has_end(folder) else _Log(search, trial, folder)


class _Log:
    """Of one trial. The writer has a thread of its own, so a trial that waits has none."""

    def __init__(self, search: Search, trial: Trial, folder: Path) -> None:
        self._search, self._folder = search, folder
        self._writer: EventFileWriter | None = None
        if any(folder.glob("events.*")):
            # What an earlier, broken-off log of this trial has is void from here on. Only there:
            # two files of one second may be read in either order.
            self._add(Event(step=0, session_log=SessionLog(status=SessionLog.START)))
        group = f"{search.name}/{trial_name(trial)}"
        self._add(Event(summary=hparams_pb(knobs_of(trial), trial_id=group)))

    def write(self, trial: Trial, news: Sequence[Observation]) -> None:
        for seen in news:
            self._add_numbers(seen.epoch, numbers_of(trial, seen))
        if trial.state.is_final:
            self._add_numbers(trial.epoch, {"paid_minutes": paid_minutes(trial)})
            for name, fact in facts_of(self._search, trial).items():
                self._add(Event(step=trial.epoch, summary=text_pb(name, fact)))
            self._add(Event(step=trial.epoch, summary=_end(trial)))
        if trial.state is not TrialState.RUNNING:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _add_numbers(self, step: int, numbers: dict[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._add(Event(step=step, summary=Summary(value=values)))

    def _add(self, event: Event) -> None:
        if self._writer is None:
            self._writer = EventFileWriter(str(self._folder))
        event.wall_time = time.time()
        self._writer.add_event(event)


def _has_end(folder: Path) -> bool:
    # Of a few kilobytes each, in which the tag is as it is written.
    tag = metadata.SESSION_END_INFO_TAG.encode()
    return any(tag in path.read_bytes() for path in folder.glob("events.*"))


def _end(trial: Trial) -> Summary:
    """As `tensorboard.plugins.hparams.summary.session_end_pb`, which needs TensorFlow."""
    status = api_pb2.STATUS_FAILURE if trial.state.is_broken else api_pb2.STATUS_SUCCESS
    ended = SessionEndInfo(status=status, end_time_secs=time.time())
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=metadata.create_summary_metadata(HParamsPluginData(session_end_info=ended)),
        tensor=metadata.NULL_TENSOR,
    )
    return Summary(value=[value])
