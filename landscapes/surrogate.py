"""Landscapes from outside: ONNX surrogates of the LCBench kind (extra `onnx`).

LCBench (Zimmer, Lindauer and Hutter, 2021) recorded trainings of small fully connected networks;
YAHPO Gym (Pfisterer et al., 2022) fitted one neural network to each set of them. Such a file maps
a setting and an epoch to what the network predicts. Nothing it says was measured.

Inputs, n rows: `x_cat`, int32, n x 1, zeros; `x_cont`, float32, n x 8: epoch, then the knobs of
`SPACE` in their order. Output: float32, n x 6 or wider, of which column 0 is the training time in
seconds up to that epoch and column 1 the validation accuracy in percent. Time does not always
rise with the epoch; its running maximum is taken. There is no noise: replicates are alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landscapes.landscape import Curve
from landscapes.network_file import MOST_BYTES, check_network
from tuner.foreign import read_capped
from tuner.space import Config, Float, Int, SearchSpace

SPACE = SearchSpace(
    batch_size=Int(16, 512, log=True),
    learning_rate=Float(1e-4, 1e-1, log=True),
    momentum=Float(0.1, 0.99),
    weight_decay=Float(1e-5, 1e-1),
    num_layers=Int(1, 5),
    max_units=Int(64, 1024, log=True),
    max_dropout=Float(0.0, 1.0),
)
EPOCHS = 52
_LOOKED_AT = 5_000
_MOST_MEMORY = 160 << 20


class Surrogate:
    """A network that predicts what LCBench would have recorded."""

    space = SPACE
    epochs = EPOCHS
    measure = "predicted accuracy"
    caveat = "which was not measured"

    def __init__(self, name: str, session: Any, sha256: str) -> None:
        self.name, self._session = name, session
        self.card: Mapping[str, Any] = {
            "about": "Predicted by a network fitted to LCBench's recorded trainings.",
            "badge": "a surrogate of LCBench, not a recording",
            "sha256": sha256,
        }

    def curve(self, config: Config, replicate: int, repeat: int = 0) -> Curve:
        """Accuracy (a fraction) and seconds of every epoch; the same for every training."""
        rows = self._rows([config], range(1, EPOCHS + 1))
        output = self._predict(rows)
        elapsed = np.maximum.accumulate(np.maximum(output[:, 0], 0.0))
        with np.errstate(invalid="ignore"):  # a stranger's network may predict infinity, twice
            return _accuracy(output), np.diff(elapsed, prepend=0.0)

    def value(self, config: Config, replicate: int | None = None, trainings: int = 1) -> float:
        """The predicted accuracy at the last epoch."""
        return float(_accuracy(self._predict(self._rows([config], [EPOCHS])))[0])

    def optimum(self) -> tuple[Config, float]:
        """The best of 5,000 random settings, always the same ones; a search may well beat it."""
        return self._best_looked_at

    @cached_property
    def _best_looked_at(self) -> tuple[Config, float]:
        configs = SPACE.from_unit(np.random.default_rng(0).random((_LOOKED_AT, len(SPACE))))
        values = _accuracy(self._predict(self._rows(configs, [EPOCHS])))
        best = int(np.argmax(values))
        return configs[best], float(values[best])

    def _rows(self, configs: Sequence[Config], epochs: Sequence[int]) -> NDArray[np.float32]:
        return np.array(
            [[e, *(c[name] for name in SPACE)] for c in configs for e in epochs], dtype=np.float32
        )

    def _predict(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        cat = np.zeros((len(rows), 1), dtype=np.int32)
        output = self._session.run(None, {"x_cat": cat, "x_cont": rows})[0]
        return np.asarray(output, dtype=np.float64)


def _accuracy(output: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.clip(output[:, 1] / 100, 0.0, 1.0)


def load_surrogate(path: Path) -> Surrogate:
    """Open an ONNX file; raises ValueError where it is not of this kind, or onnxruntime missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"{path} needs onnxruntime, which is not installed; pip install 'tuner[onnx]'"
        ) from error
    data = read_capped(path, MOST_BYTES)
    try:
        check_network(data)
        surrogate = Surrogate(path.stem, _session(onnxruntime, data), sha256(data).hexdigest())
        middle = SPACE.from_unit(np.full((1, len(SPACE)), 0.5))[0]
        scores, seconds = surrogate.curve(middle, 0)
        if not (np.isfinite(scores).all() and np.isfinite(seconds).all()):
            raise ValueError("it predicts what is no number")
    except Exception as error:  # onnxruntime's errors have no common class but this
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"{path} is no surrogate of the LCBench kind (inputs x_cat, n x 1, and x_cont, n x 8; "
            f"one output, n x 6): {reason}"
        ) from error
    return surrogate


def _session(onnxruntime: Any, data: bytes) -> Any:
    """A session of one thread, which takes no more memory than the cap."""
    _cap_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the rows are few
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Constants are computed when they are asked for, under the cap, and not while loading.
    return onnxruntime.InferenceSession(
        data,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["ConstantFolding"],
        enable_fallback=0,  # else it prints, and tries the same again
    )


@cache
def _cap_memory() -> None:
    """What all networks of the process may take together; once for each process."""
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    where = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    arena = {
        "max_mem": _MOST_MEMORY,
        "arena_extend_strategy": 1,
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": -1,
    }
    onnxruntime.create_and_register_allocator(where, onnxruntime.OrtArenaCfg(arena))
