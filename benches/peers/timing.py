"""Timings of calls that take turns, and the machine that they run on."""

import contextlib
import math
import os
import pathlib
import platform
import statistics
import time

# A timing repeats a call for at least this long, so that the clock and waking threads do not matter.
TIMING_SECONDS = 4e-3
# OpenMP's threads spin before they sleep, for less than this.
SPIN_SECONDS = 15e-3
# Before OpenMP binds this thread to one of them.
CPUS = sorted(os.sched_getaffinity(0))


def seconds(call, repeat):
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


class Load:
    """How many CPUs other processes kept busy while calls were timed."""

    def __init__(self):
        self.others = self.seconds = 0.0

    @contextlib.contextmanager
    def watched(self):
        busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
        yield
        self.others += busy_seconds() - busy - (time.process_time() - own)
        self.seconds += time.perf_counter() - start

    def cpus(self):
        return self.others / max(self.seconds, 1e-9)


LOAD = Load()


def measure(calls, rounds, others_spin):
    """
    The median time of each call in milliseconds, timed interleaved. Where `others_spin` says so of a call's name, the
    threads of the call before may still spin, and are left time to fall asleep.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = math.ceil(TIMING_SECONDS / max(seconds(call, 3), 1e-7))
    times = {name: [] for name in calls}
    with LOAD.watched():
        for _ in range(rounds):
            for name, call in calls.items():
                if others_spin(name):
                    time.sleep(SPIN_SECONDS)
                if repeats[name] > 1:
                    call()
                times[name].append(seconds(call, repeats[name]))
    return {name: statistics.median(t) * 1e3 for name, t in times.items()}


@contextlib.contextmanager
def own_cores():
    """Threads that are started here are bound to a core each, as OpenMP binds its own; the first is the caller's."""
    before = set(os.listdir("/proc/self/task"))
    yield
    for cpu, thread in enumerate(set(os.listdir("/proc/self/task")) - before, start=1):
        os.sched_setaffinity(int(thread), {CPUS[cpu]})


@contextlib.contextmanager
def all_cores():
    """Threads that are started here may run on every core, not only on the one to which OpenMP binds the caller."""
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, CPUS)
    try:
        yield
    finally:
        os.sched_setaffinity(0, bound)


def busy_seconds():
    """CPU time of the whole machine."""
    with open("/proc/stat") as lines:
        user, nice, system, _, _, irq, softirq, *_ = map(int, lines.readline().split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def available_bytes():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def cpu():
    """The CPU and its caches, such as "AMD EPYC, family 25, model 17, 1024K L2, 32768K L3"."""
    with open("/proc/cpuinfo") as lines:
        facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    words = [facts.get("model name", platform.machine())]
    words += [f"{name} {facts[key]}" for name, key in [("family", "cpu family"), ("model", "model")] if key in facts]
    for cache in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, size = ((cache / name).read_text().strip() for name in ["level", "size"])
        if int(level) > 1:
            words.append(f"{size} L{level}")
    return ", ".join(words)
