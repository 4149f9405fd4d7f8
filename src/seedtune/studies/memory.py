"""Peak memory against model size, of inference and of what tunes all weights: forward-only and backpropagation.

Models are of published shapes with random weights, each measured in processes of its own; no run and no task.
"""

from collections.abc import Iterator, Mapping

from ..analysis.estimates import Fitted, line_through
from ..report import figure
from .measured import Measured
from .measuring import sure
from .study import Case, Draw, Measure, Study

METHODS = ("inference", "two-point", "SGD", "AdamW")
"""Those of `analysis.memory_cases`, which loads torch."""
FAR = 7e9
"""Parameters of a model that was not measured."""
SHAPES = {"float32": ("stories-15m", "stories-110m", "opt-350m", "opt-1.3b")}
LARGE = ("opt-1.3b",)
"""Forwards alone are measured of these: AdamW in float32 would need 21 GB, and a step of backpropagation minutes."""
MODEL = {"tuned": "full", "num_tokens": 32, "num_scored": 16, "num_layers": 0, "targets": [], "lora_rank": 1,
         "device": "cpu"}  # fmt: skip


def peaks_of(measured: Measured, dtype: str) -> dict[str, list[tuple[float, float]]]:
    """(parameters, bytes) of each method, by size; what did not fit is left out."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for one in measured.taken:
        if one.case.endswith(f", {dtype}") and (peak := one.value("peak")) is not None:
            found[one.name].append((sure(one.value("parameters")), peak))
    return {method: sorted(points) for method, points in found.items()}


def fitted(points: list[tuple[float, float]]) -> Fitted | None:
    """None for fewer than three sizes: a line through two says nothing of whether they lie on one."""
    return line_through(*zip(*points, strict=True)) if len({size for size, _ in points}) > 2 else None


def growth(measured: Measured) -> str:
    """Bytes a parameter of each method, by dtype, and where the lines lead to."""
    dtypes = list(dict.fromkeys(one.case.rpartition(", ")[2] for one in measured.taken))
    told = "; ".join(_of_dtype(dtype, peaks_of(measured, dtype)) for dtype in dtypes)
    return f"Each in a process of its own, {told}."


def _of_dtype(dtype: str, peaks: Mapping[str, list[tuple[float, float]]]) -> str:
    lines = {method: line for method, points in peaks.items() if (line := fitted(points))}
    if not lines:
        return f"in {dtype}, too few sizes were measured for a line"
    sizes = sorted({size for points in peaks.values() for size, _ in points})
    slopes = ", ".join(
        f"{_slope(line)} for {_upto(method, peaks[method], sizes[-1])}" for method, line in lines.items()
    )
    far = ", ".join(f"{line.at(FAR) / 1e9:.0f} GB for {method}" for method, line in lines.items())
    return (
        f"in {dtype}, over {len(sizes)} models of {sizes[0] / 1e6:.0f} M to {sizes[-1] / 1e9:.2g} B parameters, peak "
        f"memory grows by {slopes} (bytes a parameter, with 90 % intervals of the line), and, extrapolated to "
        f"{FAR / 1e9:.0f} B, which was not measured: {far}"
    )


def _upto(method: str, points: list[tuple[float, float]], most: float) -> str:
    """The method, and how large its largest model was where others had larger ones."""
    largest = points[-1][0]
    return method if largest == most else f"{method} (up to {largest / 1e6:.0f} M)"


def _slope(line: Fitted) -> str:
    band = "" if line.slope_half_width is None else f" ± {line.slope_half_width:.2f}"
    return f"{line.slope:.2f}{band}"


def panel(dtype: str) -> Draw:
    """Measured peaks over the number of parameters."""

    def draw(measured: Measured) -> figure.Panel:
        lines = list(_lines(peaks_of(measured, dtype)))
        is_any = any(line.x for line in lines)  # an empty axis has no logarithm
        return figure.Panel(f"parameters, {dtype}", "peak memory of a process (GB)", lines, log_x=is_any, log_y=is_any)

    return draw


def _lines(peaks: Mapping[str, list[tuple[float, float]]]) -> Iterator[figure.Line]:
    for method, points in peaks.items():
        yield figure.Line(method, [size for size, _ in points], [peak / 1e9 for _, peak in points])


def _case(shape: str, dtype: str) -> Case:
    measures = tuple(
        Measure(method, "peak-memory", "apart", {"model": shape, "dtype": dtype, "method": method, **MODEL})
        for method in (METHODS[:2] if shape in LARGE else METHODS)
    )
    return Case(f"{shape}, {dtype}", series=dtype, measures=measures, trained=False, in_quick=shape not in LARGE)


MEMORY = Study(
    "memory-by-model-size",
    "How does peak memory grow with the model?",
    "asked for by FedMeZO's reviewers: memory against model size (the paper measured one model of 3 B parameters)",
    tuple(_case(shape, dtype) for dtype, shapes in SHAPES.items() for shape in shapes),
    growth,
    tuple(panel(dtype) for dtype in SHAPES),
)

STUDIES = (MEMORY,)
