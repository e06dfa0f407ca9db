"""Timing several contestants in turns, so that background load affects all of them equally."""

import statistics
import time


def medians(calls, seconds):
    """The median time of each call, in milliseconds."""
    for call in calls.values():
        call()
        call()
    times = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    # At least three rounds, whatever a call takes.
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def row(*cells):
    print("| " + " | ".join(cells) + " |", flush=True)


def header(*cells):
    row(*cells)
    row(*["---"] * len(cells))


def cell(ms, ours):
    """A time, and what part of it ours is."""
    return "–" if ms is None else f"{ms:.3g} ({ours / ms:.2f})"
