"""Surrogates: ONNX files of the LCBench kind, here written byte by byte with known answers."""

import hashlib
import struct
import sys

import numpy as np
import pytest

from landscapes.replay_runner import ReplayRunner
from landscapes.surrogate import EPOCHS, SPACE, load_surrogate
from tuner.space import Float, Int
from tuner.trial import Trial

# -- a writer of ONNX, which is a protocol buffer: keys before whole numbers or bytes --------------

FLOAT, INT32 = 1, 6


def varint(n):
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def put(number, value):
    """A field of a message: a whole number, text, or bytes (which a message inside is too)."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def node(operator, inputs, output):
    return b"".join(put(1, name) for name in inputs) + put(2, output) + put(4, operator)


def tensor(name, array):
    array = np.asarray(array, dtype="<f4")
    dims = b"".join(put(1, n) for n in array.shape)
    return dims + put(2, FLOAT) + put(8, name) + put(9, array.tobytes())


def port(name, kind, columns):
    """An input or output, n x columns."""
    shape = put(1, put(2, "n")) + put(1, put(1, columns))
    return put(1, name) + put(2, put(1, put(1, kind) + put(2, shape)))


def model(nodes, tensors, inputs, outputs):
    graph = b"".join(put(1, n) for n in nodes) + put(2, "g")
    graph += b"".join(put(5, t) for t in tensors)
    graph += b"".join(put(11, i) for i in inputs) + b"".join(put(12, o) for o in outputs)
    return put(1, 8) + put(7, graph) + put(8, put(1, "") + put(2, 13))


def quadratic(linear, square, constant, *, cat="x_cat", cont="x_cont", columns=8, outputs=6):
    """A network whose output is x linear + x² square + constant."""
    nodes = [
        node("Mul", [cont, cont], "squares"),
        node("MatMul", [cont, "linear"], "a"),
        node("MatMul", ["squares", "square"], "b"),
        node("Add", ["a", "b"], "c"),
        node("Add", ["c", "constant"], "output"),
    ]
    tensors = [tensor("linear", linear), tensor("square", square), tensor("constant", constant)]
    inputs = [port(cat, INT32, 1), port(cont, FLOAT, columns)]
    return model(nodes, tensors, inputs, [port("output", FLOAT, outputs)])


KNOBS = [
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
]
WEIGHTS = [0.01, 100.0, 10.0, -50.0, 2.0, 0.005, -7.0]  # of each knob in the accuracy, percent
CONFIG = {
    "batch_size": 100,
    "learning_rate": 0.05,
    "momentum": 0.5,
    "weight_decay": 0.04,
    "num_layers": 3,
    "max_units": 200,
    "max_dropout": 0.25,
}
CONSTANT = 20.0


def known_accuracy(config, epoch):
    """Percent."""
    return epoch + sum(w * config[k] for w, k in zip(WEIGHTS, KNOBS, strict=True)) + CONSTANT


def write(path, *, time=(20.0, -1.0, 100.0), constant=CONSTANT, outputs=6, **more):
    """A surrogate with time = a e + b e² + c and the accuracy of `known_accuracy`."""
    linear, square, offset = np.zeros((8, outputs)), np.zeros((8, outputs)), np.zeros(outputs)
    linear[0, 0], square[0, 0], offset[0] = time
    if outputs > 1:
        linear[0, 1], linear[1:, 1], offset[1] = 1.0, WEIGHTS, constant
    path.write_bytes(quadratic(linear, square, offset, outputs=outputs, **more))
    return path


@pytest.fixture
def surrogate(tmp_path):
    return load_surrogate(write(tmp_path / "task_7.onnx"))


# -- what it says ---------------------------------------------------------------------------------


def test_the_space_is_that_of_lcbench():
    assert list(SPACE) == KNOBS
    assert SPACE["batch_size"] == Int(16, 512, log=True)
    assert SPACE["learning_rate"] == Float(1e-4, 1e-1, log=True)
    assert SPACE["momentum"] == Float(0.1, 0.99)
    assert SPACE["weight_decay"] == Float(1e-5, 1e-1)
    assert SPACE["num_layers"] == Int(1, 5)
    assert SPACE["max_units"] == Int(64, 1024, log=True)
    assert SPACE["max_dropout"] == Float(0.0, 1.0)
    assert EPOCHS == 52


def test_accuracy_is_a_fraction_of_what_the_network_says_of_epoch_and_raw_knobs(surrogate):
    scores, _ = surrogate.curve(CONFIG, 0)
    assert scores == pytest.approx(
        [known_accuracy(CONFIG, e) / 100 for e in range(1, 53)], abs=1e-5
    )
    assert surrogate.value(CONFIG) == pytest.approx(known_accuracy(CONFIG, 52) / 100, abs=1e-5)
    shuffled = dict(reversed(CONFIG.items()))  # knobs go by name
    assert (surrogate.curve(shuffled, 0)[0] == scores).all()


def test_there_is_no_noise(surrogate):
    for one, other in zip(surrogate.curve(CONFIG, 0), surrogate.curve(CONFIG, 1), strict=True):
        assert (one == other).all()
    assert surrogate.value(CONFIG, 5) == surrogate.value(CONFIG)


def test_time_is_the_running_maximum_of_what_is_predicted(surrogate):
    # Predicted: 100 + 20 e - e², which rises from 119 to 200 at epoch 10 and then falls below 0.
    _, seconds = surrogate.curve(CONFIG, 0)
    assert seconds == pytest.approx([119.0, *range(17, 0, -2), *[0.0] * 42], abs=1e-3)
    assert seconds.sum() == pytest.approx(200.0, abs=1e-3)


def test_no_time_is_less_than_none(tmp_path):
    # Predicted: 20 e - e² - 40 is -21, -4, 11, 24, ...
    surrogate = load_surrogate(write(tmp_path / "t.onnx", time=(20.0, -1.0, -40.0)))
    _, seconds = surrogate.curve(CONFIG, 0)
    assert seconds[:4] == pytest.approx([0.0, 0.0, 11.0, 13.0], abs=1e-3)
    assert (seconds >= 0).all()


def test_accuracy_stays_within_nothing_and_all(tmp_path):
    low = load_surrogate(write(tmp_path / "low.onnx", constant=-45.0))
    scores = low.curve(CONFIG, 0)[0]
    expected = [min(max(known_accuracy(CONFIG, e) - 65, 0), 100) / 100 for e in range(1, 53)]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert scores[0] == 0.0
    high = load_surrogate(write(tmp_path / "high.onnx", constant=60.0))
    assert high.curve(CONFIG, 0)[0][-1] == 1.0
    assert high.value(CONFIG) == 1.0


def test_the_best_known_is_the_same_for_everyone_and_better_than_most(tmp_path):
    less = {"constant": CONSTANT - 40}  # so that nothing reaches 100 %
    surrogate = load_surrogate(write(tmp_path / "task.onnx", **less))
    config, best = surrogate.optimum()
    assert SPACE.contains(config)
    assert surrogate.value(config) == pytest.approx(best, abs=1e-6)
    assert best == pytest.approx(known_accuracy(config, 52) / 100 - 0.4, abs=1e-5)
    assert load_surrogate(write(tmp_path / "again.onnx", **less)).optimum() == (config, best)
    others = SPACE.from_unit(np.random.default_rng(123).random((500, 7)))
    beaten = sum(known_accuracy(c, 52) / 100 - 0.4 < best for c in others)
    assert beaten >= 498  # of 5,000 the best: another is better with chance 1/5,001


def test_the_card_says_that_nothing_was_measured(surrogate, tmp_path):
    data = (tmp_path / "task_7.onnx").read_bytes()
    assert surrogate.name == "task_7"
    assert surrogate.card["sha256"] == hashlib.sha256(data).hexdigest()
    assert "surrogate" in surrogate.card["badge"]
    assert "Predicted" in surrogate.card["about"]


def test_a_wider_output_will_do(tmp_path):
    surrogate = load_surrogate(write(tmp_path / "wide.onnx", outputs=9))
    assert surrogate.value(CONFIG) == pytest.approx(known_accuracy(CONFIG, 52) / 100, abs=1e-5)


def test_an_epoch_without_time_is_charged_a_nanosecond(surrogate):
    runner = ReplayRunner(surrogate, 0)
    runner.hold(10**15, 0)
    runner.launch(Trial(0, CONFIG, 0, 52), 52)
    costs = [sum(event.costs.values()) for _ in range(52) for event in runner.wait()]
    assert costs[10:] == [1] * 42
    assert sum(costs) == pytest.approx(200e9, rel=1e-5)


# -- what is refused ------------------------------------------------------------------------------


def refusal(path):
    with pytest.raises(ValueError, match=r"is no surrogate of the LCBench kind .*: .") as caught:
        load_surrogate(path)
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_onnx_is_refused(tmp_path):
    good = write(tmp_path / "good.onnx").read_bytes()
    path = tmp_path / "bad.onnx"
    for data in (b"", b"something else", b"PK\x03\x04", good[:40], good[: len(good) // 2]):
        path.write_bytes(data)
        refusal(path)


def test_a_network_of_another_signature_is_refused(tmp_path):
    path = tmp_path / "other.onnx"
    for more in ({"cat": "x_kat"}, {"cont": "x"}):
        refusal(write(path, **more))
    refusal(write(path, outputs=1))
    path.write_bytes(
        quadratic(np.zeros((7, 6)), np.zeros((7, 6)), np.zeros(6), columns=7)  # a knob is missing
    )
    refusal(path)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    "more",
    [
        {"time": (20.0, -1.0, float("nan"))},
        {"time": (20.0, -1.0, float("inf"))},
        {"constant": float("nan")},
    ],
    ids=["time is nan", "time is infinite", "accuracy is nan"],
)
def test_a_network_that_predicts_no_number_is_refused(tmp_path, more):
    assert "no number" in refusal(write(tmp_path / "nan.onnx", **more))


def test_without_onnxruntime_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path / "good.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"not installed; pip install 'tuner\[onnx\]'"):
        load_surrogate(path)


def test_the_writer_writes_what_the_format_says():
    assert varint(300) == b"\xac\x02"  # the example of the protocol buffers' documentation
    assert put(2, "testing") == b"\x12\x07testing"  # and its other one
    assert tensor("w", [1.0])[-4:] == struct.pack("<f", 1.0)
