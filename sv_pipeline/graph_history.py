"""The history of an open graph: operation log, change log, edit feed, and the rollback of a user's edits."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence

import pandas as pd

from sv_pipeline.arguments import is_whole, parse_count, parse_flag
from sv_pipeline.edits.requests import user_or_default
from sv_pipeline.edits.rollback import plan_rollback, roll_back
from sv_pipeline.feed.event import EditEvent
from sv_pipeline.feed.reading import events_after, number_after
from sv_pipeline.graph.chunked_graph import ChunkedGraph
from sv_pipeline.moments import Moment, parse_operation
from sv_pipeline.operations.refusal import bad_request
from sv_pipeline.storage.wall import methods_behind_the_wall, steps_behind_the_wall

__all__ = ["GraphHistory"]


@methods_behind_the_wall
class GraphHistory(abc.ABC):
    """The methods of an open graph about its history."""

    @property
    @abc.abstractmethod
    def graph(self) -> ChunkedGraph:
        """The chunked graph."""

    def operations(self, last: int | None = None) -> pd.DataFrame:
        """Return the operation log, newest last: requests, users and outcomes; the whole log, or the last entries."""
        from sv_pipeline.reports.edit_numbers import operations_table

        with bad_request():
            newest = None if last is None else parse_count(last, "number of operations")
        return operations_table(self.graph, newest)

    def change_log(
        self, *, roots: Sequence[int] | None = None, user: str | None = None, since: Moment | None = None
    ) -> pd.DataFrame:
        """Return the edits that were made, oldest first: operation, kind, time, user, points, roots before and after.

        Parameters
        ----------
        roots
            Return only the edits from which these roots came. Default: the edits of all roots.
        user
            Return only the edits of this user.
        since
            Return only edits from this time on, or from the operation with this number on.
        """
        from sv_pipeline.reports.change_log import change_log

        with bad_request():
            return change_log(self.graph, roots=roots, user=user, since=since)

    def rollback(
        self,
        user: str,
        since: Moment,
        *,
        apply: bool = False,
        over_others: bool = False,
        by: str | None = None,
    ) -> pd.DataFrame:
        """Undo a user's edits, newest first, and return what is undone; nothing is written unless ``apply`` is true.

        If the process dies, the call may be repeated: it continues after the undos that were made.

        Parameters
        ----------
        user
            User whose edits are undone.
        since
            Undo edits from this time on, or from the operation with this number on.
        apply
            Whether to make the undos.
        over_others
            Undo also edits on which later edits of others build; what those changed stays.
        by
            Author of the undos. Default: the user of this machine.

        Raises
        ------
        ConflictError
            If an earlier call died while it wrote an undo; that operation must be recovered first.
        """
        from sv_pipeline.reports.change_log import rollback_table

        with bad_request():
            wanted = parse_flag(apply, "apply")
        who = user_or_default(by)
        steps = plan_rollback(self.graph, user, since, over_others=over_others)
        return rollback_table(roll_back(self.graph, steps, who) if wanted else steps)

    def events(self, since: int = 0, *, follow: bool = False) -> Iterator[EditEvent]:
        """Return the edit feed: finished operations of any software, each after those that it builds on.

        Parameters
        ----------
        since
            Number of an operation; only events after its own are returned. 0 starts at the beginning.
        follow
            Wait for further events without end.

        Raises
        ------
        NotFoundError
            If the feed does not contain the operation.
        """
        with bad_request():
            operation = 0 if is_whole(since) and int(since) == 0 else parse_operation(since)
            waits = parse_flag(follow, "follow")
        graph = self.graph
        return steps_behind_the_wall(events_after(graph, number_after(graph, operation), follow=waits))
