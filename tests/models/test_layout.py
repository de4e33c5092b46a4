"""Which layout is chosen from what is measured, and how measurements are remembered."""

from __future__ import annotations

import json

import pytest

from models.layout import (
    Layout,
    Timing,
    alone,
    cache_key,
    choose,
    explore,
    read_cache,
    write_cache,
)


def measured(times):
    """A `measure` that knows some layouts and has no memory for the others; and what was asked."""
    asked = []

    def measure(layout):
        asked.append(layout)
        return times.get(layout)

    return measure, asked


def test_on_a_cpu_processes_threads_and_packs_are_compared():
    times = {
        Layout(4): 100,
        Layout(1): 60,
        Layout(1, threads=4): 30,
        Layout(4, width=2, grouped=True): 210,
    }
    measure, asked = measured(times)
    timings = explore("cpu", 4, None, measure)
    assert asked == list(times)
    assert [t.share_ns for t in timings] == [25, 60, 30, 26]
    assert choose(timings).layout == Layout(4)
    assert alone(timings).step_ns == 30


def test_one_core_has_nothing_to_compare_twice():
    measure, asked = measured({Layout(1): 10, Layout(1, width=2, grouped=True): 15})
    timings = explore("cpu", 1, None, measure)
    assert asked == [Layout(1), Layout(1, width=2, grouped=True)]
    assert choose(timings).layout == asked[1]


def test_slots_that_are_given_are_processes_on_a_cpu_and_lanes_on_a_gpu():
    measure, asked = measured({Layout(3): 10})
    assert choose(explore("cpu", 2, 3, measure)).layout == Layout(3)
    assert asked == [Layout(3)]
    measure, asked = measured({Layout(1, width=3): 10, Layout(1, width=3, bf16=True): 5})
    assert choose(explore("cuda:0", 2, 3, measure)).layout == Layout(1, width=3, bf16=True)
    assert [layout.slots for layout in asked] == [3, 3, 3]


def test_a_gpus_packs_are_widened_until_that_brings_nothing():
    # A step takes 100 up to 8 lanes, then twice as long for twice as many.
    times = {Layout(1, width=w): 100 * max(1, w // 8) for w in (1, 2, 4, 8, 16, 32)}
    times[Layout(1, width=8, bf16=True)] = 95
    measure, asked = measured(times)
    timings = explore("cuda:0", 8, None, measure)
    assert [layout.width for layout in asked] == [1, 2, 4, 8, 16, 8, 8]
    assert asked[-2] == Layout(1, width=8, grouped=True)
    assert choose(timings).layout == Layout(1, width=8)  # bf16 is within the margin
    assert alone(timings).step_ns == 100


def test_a_gpus_memory_ends_the_widening():
    times = {Layout(1, width=w): 100 for w in (1, 2, 4)} | {Layout(1, width=4, bf16=True): 50}
    measure, asked = measured(times)
    assert choose(explore("cuda:0", 8, None, measure)).layout == Layout(1, width=4, bf16=True)
    assert [layout.width for layout in asked] == [1, 2, 4, 8, 4, 4]


def test_a_device_that_holds_nothing_is_said_so():
    with pytest.raises(ValueError, match="memory of cuda:1 does not hold"):
        explore("cuda:1", 8, None, lambda layout: None)


def test_a_later_layout_must_be_clearly_quicker():
    one, two, three = Timing(Layout(2), 200), Timing(Layout(1), 95), Timing(Layout(4), 340)
    assert choose([one, two]) == one
    assert choose([one, two, three]) == three


def test_measurements_are_remembered_by_what_they_hold_for(tmp_path):
    path = tmp_path / "deep" / "layouts.json"
    timings = [Timing(Layout(1, 2, 3, bf16=True, channels_last=False), 5), Timing(Layout(2), 7)]
    assert read_cache(path, "a") == []
    write_cache(path, "a", timings)
    write_cache(path, "b", timings[:1])
    assert read_cache(path, "a") == timings
    assert read_cache(path, "b") == timings[:1]
    assert read_cache(path, "c") == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 3}', '{"a": [{"step_ns": 1}]}', "null"])
def test_a_cache_that_is_no_such_is_measured_anew(tmp_path, content):
    path = tmp_path / "layouts.json"
    path.write_text(content)
    assert read_cache(path, "a") == []
    write_cache(path, "a", [Timing(Layout(2), 7)])
    assert read_cache(path, "a") == [Timing(Layout(2), 7)]
    json.loads(path.read_text())


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    write_cache(tmp_path / "file" / "layouts.json", "a", [Timing(Layout(2), 7)])


def test_the_key_tells_devices_cores_and_images_apart():
    keys = {
        cache_key("cpu", 2, (1, 28, 28)),
        cache_key("cpu", 4, (1, 28, 28)),
        cache_key("cpu", 2, (3, 32, 32)),
        cache_key("NVIDIA H100", 2, (1, 28, 28)),
    }
    assert len(keys) == 4


def test_a_layout_is_said_in_words():
    assert str(Layout(2)) == "2 processes"
    assert str(Layout(1, threads=2)) == "1 process of 2 threads"
    assert str(Layout(1, width=16, bf16=True)) == "1 process, packs of 16, bf16"
    assert str(Layout(2, width=2, grouped=True)) == "2 processes, packs of 2, grouped"
