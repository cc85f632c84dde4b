"""What routes that list something take in their query."""

from typing import Annotated

from fastapi import Query

ID = r"^[ -~]{1,64}$"
"""An id as a client may give it: a database takes no NUL and no half of a surrogate pair."""
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(pattern=ID, description="id of the last one that was seen")]
