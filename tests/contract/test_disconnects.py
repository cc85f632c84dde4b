"""Row 2: clients that leave in every phase of a run, over real sockets and a real engine (tests/load does
it)."""

from pathlib import Path

import pytest

from app.runtime import Served
from tests.faults.figures import Figure, count, say
from tests.load.disconnects import LIMIT_S, PHASES, measure

pytestmark = pytest.mark.engine


async def test_what_a_client_leaves_behind_is_gone_within_a_second(served: Served, tmp_path: Path) -> None:
    """`served` first: then what is imported is imported."""
    times = count(20, 1)
    result = await measure(tmp_path, times)
    slowest = {name: float(row["slowest"]) for name, row in result.rows.items()}
    (share,) = (bar.figure for bar in result.bars)
    total = times * len(PHASES)
    say(
        Figure(
            2,
            f"clients that leave {', '.join(slowest)}",
            f"{round(share * total / 100)} of {total} freed within {LIMIT_S:g} s, the slowest after"
            f" {max(slowest.values()):.2f} s",
            f"{total} of {total} within {LIMIT_S:g} s",
            share == 100,
        )
    )
