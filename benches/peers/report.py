"""What the rows of a run say."""

import argparse
import json
import math

# A limit is meant where a tensor does not fit into the caches.
LARGE_BYTES = 24e6

HEADING = (
    f"{'':<30} {'ours':>9} {'torch':>9} {'oneDNN':>9} {'ahead':>6} | {'read':>9} {'copy':>9} {'triad':>9} {'limit':>6}"
)


def shape_name(shape):
    return "x".join(map(str, shape))


def tensor_bytes(row):
    return 4 * math.prod(row["shape"])


def best_peer(row):
    return min(row["torch_ms"], row["onednn_ms"])


def ahead(row):
    """How many times as long the best peer takes."""
    return best_peer(row) / row["ours_ms"]


def limit(row):
    """
    The least time that the memory allows the pass. A channel of NCHW may stay in cache between statistics and
    normalization; of NHWC and NC the whole tensor is read twice.
    """
    if row["pass"] == "backward":
        return row["triad_ms"]
    if row["pass"] == "forward" and row["layout"] != "NCHW":
        return row["read_ms"] + row["copy_ms"]
    return row["copy_ms"]


def to_limit(row):
    return row["ours_ms"] / limit(row)


def geometric_mean(values):
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def line(row):
    title = f"{row['pass']} {row['layout']} {shape_name(row['shape'])}"
    times = [f"{row[who + '_ms']:>9.4f}" for who in ["ours", "torch", "onednn", "read", "copy", "triad"]]
    return f"{title:<30} {' '.join(times[:3])} {ahead(row):>5.2f}x | {' '.join(times[3:])} {to_limit(row):>6.2f}"


def groups(rows):
    """Rows by pass and layout, in the order in which they come."""
    by = {}
    for row in rows:
        by.setdefault((row["pass"], row["layout"]), []).append(row)
    return by


def summary(rows):
    lines = [f"{'geometric means':<22} {'ahead of the best peer':>24} {'least':>7} {'to the limit over 24 MB':>26} {'most':>7}"]
    for (name, layout), group in groups(rows).items():
        large = [to_limit(row) for row in group if tensor_bytes(row) > LARGE_BYTES]
        lines.append(
            f"{name + ' ' + layout:<22} {geometric_mean(map(ahead, group)):>23.2f}x {min(map(ahead, group)):>6.2f}x"
            f" {geometric_mean(large):>26.2f} {max(large, default=math.nan):>7.2f}"
        )
    behind = [row for row in rows if ahead(row) < 1]
    lines += ["", f"behind the best peer: {len(behind)} of {len(rows)}"] + [line(row) for row in behind]
    return "\n".join(lines)
