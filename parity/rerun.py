"""One more run before an alarm that an order of summation might explain.

Where values run on, no formula says what honest rounding adds up to: that is measured, on a
reference that is summed forwards and backwards. Terms whose signs alternate cancel in both, and not
on a machine that sums in lanes. So before a narrow dtype alarms for reasons of rounding alone, its
runs are made once more beside a reference summed in lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from parity.judge import PassRecord
from parity.parties import Entry
from parity.result import TapRow

Entries = Mapping[str, Sequence[Entry]]


def walk_until_sure(
    walk: Callable[[Entries], PassRecord],
    entries: Entries,
    further: Callable[[str], Sequence[Entry]],
) -> PassRecord:
    """Return the record of a walk, made again for the dtypes whose alarm is in doubt.

    Args:
        walk: has these take part, and judges.
        entries: who takes part at each dtype.
        further: more honest variants at a dtype.
    """
    record = walk(entries)
    doubtful = [lane for lane in entries if in_doubt(record.rows, lane)]
    if not doubtful:
        return record
    again = walk({lane: [*entries[lane], *further(lane)] for lane in doubtful})
    return PassRecord(
        [*(row for row in record.rows if row.lane not in doubtful), *again.rows],
        [*(row for row in record.witnesses if row.lane not in doubtful), *again.witnesses],
        record.unmatched,
        [*(one for one in record.exhibits if one.lane not in doubtful), *again.exhibits],
    )


def in_doubt(rows: Sequence[TapRow], lane: str) -> bool:
    """Return whether another order of summing might silence all alarms of a dtype.

    Not those of float64, nor beside them; none that is beyond rounding; and none of an isolated
    operator, for which the orders have been tried.
    """
    failed = [row for row in rows if not row.passed]
    here = [row for row in failed if row.lane == lane]
    return bool(here) and not any(
        row.lane == "f64" or (row.lane == lane and (row.mode == "isolated" or row.beyond_rounding))
        for row in failed
    )
