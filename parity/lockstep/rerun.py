"""One more run before an alarm that an order of summation might explain.

Where values run on, no formula says what honest rounding adds up to: that is measured, on a
reference that is summed forwards and backwards. Terms whose signs alternate cancel in both, and not
on a machine that sums in lanes. So before a narrow dtype alarms for reasons of rounding alone, its
runs are made once more beside a reference summed in lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from parity.lockstep.comparator import PassResult
from parity.lockstep.participants import Participant
from parity.result import TapResult

# From this share of a limit on a figure is near an alarm: another machine's may be beyond it.
NEAR = 0.75

Participants = Mapping[str, Sequence[Participant]]


def run_until_sure(
    run: Callable[[Participants], PassResult],
    participants: Participants,
    further: Callable[[str, Sequence[Participant]], Sequence[Participant]],
) -> PassResult:
    """Return the result of a pass, made again for the dtypes whose alarm is in doubt.

    Args:
        run: has these take part, and compares.
        participants: who takes part at each dtype.
        further: more honest variants at a dtype, beside those who take part.
    """
    record = run(participants)
    doubtful = [lane for lane in participants if in_doubt(record.rows, lane)]
    if not doubtful:
        return record
    again = run(
        {lane: [*participants[lane], *further(lane, participants[lane])] for lane in doubtful}
    )
    sure = PassResult(
        [row for row in record.rows if row.lane not in doubtful],
        [row for row in record.witnesses if row.lane not in doubtful],
        record.unmatched,
        [one for one in record.snapshots if one.lane not in doubtful],
    )
    return PassResult.join([sure, again])


def in_doubt(rows: Sequence[TapResult], lane: str) -> bool:
    """Return whether another order of summing might matter to a dtype that alarms or nearly does.

    Not to alarms of float64, nor beside them; to none that is beyond rounding; and to none of an
    isolated operator, for which the orders have been tried.
    """
    here = [row for row in rows if row.lane == lane]
    sure = any(
        (row.mode == "isolated" and not row.chained) or row.beyond_rounding
        for row in here
        if not row.passed
    )
    meaning = any(row.lane == "f64" and not row.passed for row in rows)
    near = any(
        max(row.rho / row.limit, row.peak_rho / row.peak_limit) > NEAR
        for row in here
        if row.mode != "isolated" or row.chained
    )
    return lane != "f64" and near and not sure and not meaning
