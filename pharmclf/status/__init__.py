"""Where a run stands: written into its folder by the driver as it goes on, read from storage alone by anyone.

`status.json` is for people and their tools; nothing that a run does depends on it.
"""

from pharmclf.status.board import StatusBoard
from pharmclf.status.reading import DEAD, Found, list_status, read_status
from pharmclf.status.shown import status_details, status_table
from pharmclf.status.standing import LIVE, STATES, STATUS_FILE, TEST, Standing, State, Status, utc

__all__ = [
    "DEAD", "LIVE", "STATES", "STATUS_FILE", "TEST", "Found", "Standing", "State", "Status",
    "StatusBoard", "list_status", "read_status", "status_details", "status_table", "utc",
]  # fmt: skip
