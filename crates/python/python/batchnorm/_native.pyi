"""See src/lib.rs. Arrays are given as their address and their number of elements."""

Raw = tuple[int, int]
Two = tuple[Raw, Raw]
Settings = tuple[int, int, tuple[int, int, int], float, int, float, int]
Source = tuple[float | None, int, Raw, Raw]
Inputs = tuple[Raw | None, Raw | None, Raw | None, Raw | None, Raw | None]
Outputs = tuple[Raw | None, Raw | None, Raw | None, Raw | None]

def shape_of(dims: list[int], strides: list[int], axis: int) -> tuple[int, int, int]: ...
def statistics(settings: Settings, x: Raw, given: Inputs, statistics: Two) -> float: ...
def forward_training(
    settings: Settings,
    x: Raw,
    given: Inputs,
    y: Raw,
    statistics: Two,
    running: tuple[int, Raw, Raw, float] | None = None,
) -> float: ...
def normalize(settings: Settings, x: Raw, source: Source, given: Inputs, y: Raw) -> None: ...
def gradient_sums(settings: Settings, x_and_dy: Two, source: Source, given: Inputs, sums: Two) -> None: ...
def input_gradient(
    settings: Settings, x_and_dy: Two, source: Source, sums: Two, given: Inputs, gradients: Outputs
) -> None: ...
def parameter_gradients(settings: Settings, source: Source, sums: Two, gradients: Outputs) -> None: ...
def backward(settings: Settings, x_and_dy: Two, source: Source, given: Inputs, gradients: Outputs) -> None: ...
def backward_from_output(
    settings: Settings, y_and_dy: Two, source: Source, given: Inputs, gradients: Outputs
) -> None: ...
def double_backward(
    settings: Settings,
    x_and_dy: Two,
    source: Source,
    gamma: Raw | None,
    cotangents: tuple[Raw, Raw | None, Raw | None],
    gradients: tuple[Raw | None, Raw | None, Raw | None],
) -> None: ...
def fold(settings: Settings, source: Source, given: Inputs, out: Two) -> None: ...
def update_running(
    element: int,
    mean: Raw,
    var: Raw,
    batches: int,
    batch: Source,
    momentum: float | None,
    biased: bool,
    any_momentum: bool,
) -> int: ...
def merge_statistics(rows: Raw, merged: Raw, channels: int) -> None: ...
def use_openmp_of(library: str) -> bool: ...
def want_huge_pages(address: int, bytes: int) -> None: ...
