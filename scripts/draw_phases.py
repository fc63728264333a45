"""Draw docs/phases.svg: the phases of a run, with an arrow for each transition.

The arrows are those of ``mtf_trainer.phases.TRANSITIONS``; here stands only where they
run. With ``--check`` it writes nothing, and exits 1 if the picture is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mtf_trainer.phases import TRANSITIONS, Phase

TARGET = Path(__file__).parents[1] / "docs" / "phases.svg"

WIDTH, HEIGHT = 880, 700
BOX_WIDTH, BOX_HEIGHT = 230, 34
LEFT, RIGHT = 250, 560  # left edges of the two columns
TOP, ROW = 20, 62

PLACES = {
    Phase.INIT: (LEFT, 0),
    Phase.TRAIN_START_EPOCH: (LEFT, 1),
    Phase.TRAIN_BATCH_LOAD: (LEFT, 2),
    Phase.TRAIN_BATCH_FORWARD: (LEFT, 3),
    Phase.TRAIN_BATCH_BACKWARD: (LEFT, 4),
    Phase.TRAIN_BATCH_OPTIM_STEP: (LEFT, 5),
    Phase.SCHEDULER_BATCH_STEP: (LEFT, 6),
    Phase.TRAIN_BATCH_END: (LEFT, 7),
    Phase.SCHEDULER_EPOCH_STEP: (LEFT, 8),
    Phase.EPOCH_END: (LEFT, 9),
    Phase.TRAINING_COMPLETE: (LEFT, 10),
    Phase.VAL_START_EPOCH: (RIGHT, 5),
    Phase.VAL_BATCH_LOAD: (RIGHT, 6),
    Phase.VAL_BATCH_FORWARD: (RIGHT, 7),
    Phase.VAL_BATCH_END: (RIGHT, 8),
}

# Arrows that do not just go down: side they leave by, the x they run at, how far from the
# middle of the boxes they leave and arrive, the side they arrive at, and what is told.
ROUTES: dict[tuple[Phase, Phase], tuple[str, int, int, int, str, str]] = {
    (Phase.INIT, Phase.TRAINING_COMPLETE): (
        *("right", 840, 0, 6, "right"),
        "enough is done already",
    ),
    (Phase.TRAIN_BATCH_BACKWARD, Phase.TRAIN_BATCH_END): (
        *("left", 200, 0, -11, "left"),
        "inside a window",
    ),
    (Phase.TRAIN_BATCH_OPTIM_STEP, Phase.TRAIN_BATCH_END): (
        *("left", 225, 0, -4, "left"),
        "",
    ),
    (Phase.TRAIN_BATCH_END, Phase.TRAIN_BATCH_LOAD): (
        *("left", 90, 4, 0, "left"),
        "next batch",
    ),
    (Phase.TRAIN_BATCH_END, Phase.EPOCH_END): ("left", 200, 11, -6, "left", ""),
    (Phase.TRAIN_BATCH_END, Phase.VAL_START_EPOCH): ("right", 510, 0, -6, "left", ""),
    (Phase.SCHEDULER_EPOCH_STEP, Phase.VAL_START_EPOCH): (
        *("right", 530, 0, 6, "left"),
        "",
    ),
    (Phase.VAL_BATCH_END, Phase.VAL_BATCH_LOAD): ("right", 815, -6, 0, "right", ""),
    (Phase.VAL_BATCH_END, Phase.EPOCH_END): ("right", 815, 6, 0, "right", ""),
    (Phase.EPOCH_END, Phase.TRAIN_START_EPOCH): (
        *("left", 40, 6, 0, "left"),
        "next epoch",
    ),
}
PASSED_ON = (Phase.TRAIN_BATCH_FORWARD, Phase.TRAIN_BATCH_BACKWARD)

HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"
 font-family="sans-serif" font-size="13">
<title>The phases of a run and what may follow what</title>
<defs>
<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"
 orient="auto"><path d="M0 0 8 4 0 8z" fill="#445"/></marker>
</defs>
<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fff"/>
"""


def main(arguments: list[str]) -> int:
    """Write the picture or, with ``--check``, compare it; return the exit code."""
    text = render()
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text("utf-8") == text:
            return 0
        print(f"{TARGET} is out of date: run python scripts/draw_phases.py")
        return 1
    TARGET.write_text(text, "utf-8")
    return 0


def render() -> str:
    """Return the whole picture."""
    arrows = [
        line
        for phase in Phase
        for following in sorted(TRANSITIONS[phase])
        for line in draw_arrow(phase, following)
    ]
    boxes = [line for phase in Phase for line in draw_box(phase)]
    return HEAD + "\n".join([*arrows, *boxes]) + "\n</svg>\n"


def draw_box(phase: Phase) -> Iterator[str]:
    """Yield the box of *phase*."""
    x, row = PLACES[phase]
    y = TOP + row * ROW
    fill = "#e8f1e4" if x == RIGHT else "#e4ecf7"
    if phase in (Phase.INIT, Phase.EPOCH_END, Phase.TRAINING_COMPLETE):
        fill = "#f2efe6"
    yield (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="6" '
        f'fill="{fill}" stroke="#445"/>'
    )
    middle_x, middle_y = x + BOX_WIDTH // 2, y + BOX_HEIGHT // 2 + 5
    yield f'<text x="{middle_x}" y="{middle_y}" text-anchor="middle">{phase}</text>'


def draw_arrow(phase: Phase, following: Phase) -> Iterator[str]:
    """Yield the arrow from *phase* to *following*, and what is written at it."""
    edge = phase, following
    x, row = PLACES[phase]
    to_x, to_row = PLACES[following]
    start_y, end_y = TOP + row * ROW, TOP + to_row * ROW
    title = f"<title>{phase} to {following}</title>"
    if edge not in ROUTES:
        middle = x + BOX_WIDTH // 2
        style = ' stroke-dasharray="5 4"' if edge == PASSED_ON else ""
        path = f"M{middle} {start_y + BOX_HEIGHT}V{end_y}"
        yield _path(path, title, style)
        if edge == PASSED_ON:
            yield _text(middle + 10, start_y + BOX_HEIGHT + 18, "passed on", "start")
        return
    leaves, at, shift, to_shift, arrives, told = ROUTES[edge]
    begin_x = x if leaves == "left" else x + BOX_WIDTH
    finish_x = to_x if arrives == "left" else to_x + BOX_WIDTH
    begin_y = start_y + BOX_HEIGHT // 2 + shift
    finish_y = end_y + BOX_HEIGHT // 2 + to_shift
    yield _path(f"M{begin_x} {begin_y}H{at}V{finish_y}H{finish_x}", title)
    if told:
        y = min(begin_y, finish_y) - 5
        if at < begin_x:
            yield _text(begin_x - 12, y, told, "end")
        else:
            yield _text(begin_x + 12, y, told, "start")


def _path(path: str, title: str, style: str = "") -> str:
    return (
        f'<path d="{path}" fill="none" stroke="#445" marker-end="url(#head)"{style}>'
        f"{title}</path>"
    )


def _text(x: int, y: int, text: str, anchor: str) -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="11" fill="#445" text-anchor="{anchor}">'
        f"{text}</text>"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
