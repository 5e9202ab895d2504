"""What has happened to an open graph: its log, its change log, its edit feed, and rolling back what a user did."""

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
    """The part of an open graph that looks back."""

    @property
    @abc.abstractmethod
    def graph(self) -> ChunkedGraph:
        """The chunked graph."""

    def operations(self, last: int | None = None) -> pd.DataFrame:
        """The operation log, newest last: what was asked for, by whom, and what came of it; all, or the newest ones."""
        from sv_pipeline.reports.edit_numbers import operations_table

        with bad_request():
            newest = None if last is None else parse_count(last, "number of operations")
        return operations_table(self.graph, newest)

    def change_log(
        self, *, roots: Sequence[int] | None = None, user: str | None = None, since: Moment | None = None
    ) -> pd.DataFrame:
        """The edits that were made, oldest first: operation, kind, time, user, points, and roots before and after.

        Parameters
        ----------
        roots
            Only the edits that these roots came from. Default: those of all roots.
        user
            Only the edits of this user.
        since
            Only edits of this time or later; or with this number of an operation, or a higher one.
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
        """What is taken back of a user's edits, newest first; nothing is written unless ``apply`` is true.

        It may be called again after it has died: what it has undone stays undone, and it goes on.

        Parameters
        ----------
        user
            Whose edits.
        since
            Edits of this time or later; or with this number of an operation, or a higher one.
        apply
            Make the undos.
        over_others
            Take back also what later edits of others stand on; what those changed stays.
        by
            The user of the undos. Default: the user of this machine.

        Raises
        ------
        ConflictError
            If an earlier call died while it wrote an undo: that operation has to be recovered first.
        """
        from sv_pipeline.reports.change_log import rollback_table

        with bad_request():
            wanted = parse_flag(apply, "apply")
        who = user_or_default(by)
        steps = plan_rollback(self.graph, user, since, over_others=over_others)
        return rollback_table(roll_back(self.graph, steps, who) if wanted else steps)

    def events(self, since: int = 0, *, follow: bool = False) -> Iterator[EditEvent]:
        """The edit feed: finished operations, of whatever software, each after those that it builds on.

        Parameters
        ----------
        since
            Number of an operation: only events after its own. 0 = from the beginning.
        follow
            Wait for more, for ever.

        Raises
        ------
        NotFoundError
            If the feed does not have the operation.
        """
        with bad_request():
            operation = 0 if is_whole(since) and int(since) == 0 else parse_operation(since)
            waits = parse_flag(follow, "follow")
        graph = self.graph
        return steps_behind_the_wall(events_after(graph, number_after(graph, operation), follow=waits))
