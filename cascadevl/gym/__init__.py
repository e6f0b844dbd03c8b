"""Visual tasks with known answers, drawn from a seed. Each family is a core.task.Task."""

from cascadevl.gym.shapes import Locate, Shapes
from cascadevl.gym.text import Line, Paragraph

TASKS: dict[str, type] = {
    "line": Line,
    "paragraph": Paragraph,
    "shapes": Shapes,
    "locate": Locate,
}
