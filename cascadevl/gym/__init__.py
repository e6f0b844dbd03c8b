"""Visual tasks with known answers, drawn from a seed. Each family is a core.task.Task."""

from cascadevl.gym.captions import Captions
from cascadevl.gym.charts import Charts
from cascadevl.gym.clips import Clips
from cascadevl.gym.documents import KeyValue
from cascadevl.gym.letters import Letters
from cascadevl.gym.locate import Locate
from cascadevl.gym.reports import Reports
from cascadevl.gym.several import Several
from cascadevl.gym.shapes import Shapes
from cascadevl.gym.text import Line, Paragraph

TASKS: dict[str, type] = {
    "letters": Letters,
    "line": Line,
    "paragraph": Paragraph,
    "keyvalue": KeyValue,
    "charts": Charts,
    "shapes": Shapes,
    "locate": Locate,
    "several": Several,
    "clips": Clips,
    "captions": Captions,
    "reports": Reports,
}
