"""A viewer for everybody: each link to it opens a window of its own on any graph of a home. Edits nothing.

Links have the form ``ADDRESS/GRAPH?operation=12``, where the address ends in a token. They are what
`sv_pipeline.reports.viewer_links` makes of SV_PIPELINE_VIEWER_URL. All addresses below it are relative, so that a
reverse proxy may serve them under any path, with encryption and with accounts.
"""

from __future__ import annotations

import asyncio
import html
import logging
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import neuroglancer
import tornado.web

from sv_pipeline.defects import DefectError
from sv_pipeline.errors import ConfigError, InputError, NotFoundError
from sv_pipeline.moments import parse_moment
from sv_pipeline.proofreading import open_graph
from sv_pipeline.registry import Registry
from sv_pipeline.reports.viewer_links import VIEWER_VARIABLE, viewer_address
from sv_pipeline.storage.wall import our_error
from sv_pipeline.viewer.session import Voxel
from sv_pipeline.viewer.window import ViewerWindow

__all__ = ["TeamViewer", "port_and_token"]

_logger = logging.getLogger(__name__)

MOST_WINDOWS = 32
"""Number of windows that follow edits at the same time. Each of them looks for edits every few seconds."""
_TOKEN = re.compile(r".*/open/([A-Za-z0-9_-]{20,})")


def port_and_token() -> tuple[int, str]:
    """Return the port and the token of a viewer that is about to be served.

    They are those of SV_PIPELINE_VIEWER_URL, so that links stay valid when the viewer is started again; without it, any
    free port (0) and a new token.

    Raises
    ------
    ConfigError
        If the address in the environment does not end in a token.
    """
    address = viewer_address()
    if address is None:
        return 0, neuroglancer.random_token.make_random_token()
    found = _TOKEN.fullmatch(urlsplit(address).path)
    if found is None:
        raise ConfigError(
            f"{VIEWER_VARIABLE} does not end in /open/ and a token of at least 20 letters and digits.",
            remedy="Unset it, start the viewer, and set it to the address that is printed.",
        )
    return urlsplit(address).port or 0, found[1]


class TeamViewer:
    """Serves windows on the graphs of a home, beside neuroglancer's own server, which must have been started."""

    def __init__(self, home: str, token: str, *, most_windows: int = MOST_WINDOWS) -> None:
        """Begin to answer requests.

        Parameters
        ----------
        home
            Home with the registered graphs.
        token
            Part of the address, without which nothing is answered.
        most_windows
            Number of windows that follow edits at the same time.
        """
        self.home = home
        self._windows: deque[ViewerWindow] = deque()
        self._most = most_windows
        self._opening = ThreadPoolExecutor(1, thread_name_prefix="opening")
        server = neuroglancer.server.global_server
        self.address = f"{server.server_url}/open/{token}"
        """Address to which links are relative; of this machine, as far as it knows its name."""
        routes = [(rf"/open/{re.escape(token)}/(?P<graph_id>[^/]*)", _Open, {"team": self})]
        # The server's routes may be changed only in its own thread.
        added: Future[None] = Future()
        neuroglancer.server.defer_callback(lambda: added.set_result(server.app.add_handlers(".*", routes)))
        added.result()

    def open(self, graph_id: str, options: dict[str, str]) -> str:
        """Open a window; the oldest one is no longer kept up to date if there are too many.

        Parameters
        ----------
        graph_id
            A registered graph.
        options
            Any of ``operation``, ``position`` and ``at``, as the command ``view`` takes them.

        Returns
        -------
        str
            Token of the window.
        """
        chosen = _parsed(options)
        window = ViewerWindow(open_graph(graph_id, self.home), **chosen)
        self._windows.append(window)
        while len(self._windows) > self._most:
            oldest = self._windows.popleft()
            oldest.close()
            oldest.say("closed", "This view no longer shows new edits, since many others were opened: open it again.")
            oldest.graph.close()
        return str(window.viewer.token)

    def submit(self, graph_id: str, options: dict[str, str]) -> Future[str]:
        """Call `open` in a thread; one window is opened at a time."""
        return self._opening.submit(self.open, graph_id, options)

    def close(self) -> None:
        """Close all windows."""
        self._opening.shutdown(cancel_futures=True)
        for window in self._windows:
            window.close()

    def graphs(self) -> list[str]:
        """Return the graphs that can be opened."""
        return Registry(self.home).graph_ids()


def _parsed(options: dict[str, str]) -> dict[str, Any]:
    known = {"operation", "position", "at"}
    if unknown := sorted(options.keys() - known):
        raise InputError(f"a link has no option {unknown[0]!r}.", remedy=f"The options are {', '.join(sorted(known))}.")
    if {"operation", "at"} <= options.keys():
        raise InputError("a link names an operation or a moment, not both.", remedy="Leave one of them out.")
    chosen: dict[str, Any] = {}
    if "operation" in options:
        chosen["operation"] = _whole(options["operation"])
    if "at" in options:
        text = options["at"]
        chosen["at"] = parse_moment(int(text) if text.isdecimal() and len(text) < 20 else text)
    if "position" in options:
        chosen["position"] = _voxel(options["position"])
    return chosen


def _whole(text: str) -> int:
    if not (text.isdecimal() and len(text) < 19 and int(text) > 0):
        raise InputError(f"{text!r} is not the number of an operation.", remedy="Operations are numbered from 1.")
    return int(text)


def _voxel(text: str) -> Voxel:
    if re.fullmatch(r"-?\d{1,18},-?\d{1,18},-?\d{1,18}", text) is None:
        raise InputError(f"{text!r} is not a position.", remedy="Write x,y,z in voxels of mip 0.")
    x, y, z = map(int, text.split(","))
    return x, y, z


class _Open(tornado.web.RequestHandler):
    """Opens a window and leads to it; lists the graphs if none is named."""

    def initialize(self, team: TeamViewer) -> None:
        self.team = team

    async def get(self, graph_id: str) -> None:
        self.set_header("Cache-Control", "no-store")  # each visit gets a window of its own
        self.set_header("Referrer-Policy", "no-referrer")
        try:
            if not graph_id:
                await self._list()
                return
            options = {name: self.get_query_argument(name) for name in self.request.query_arguments}
            token = await asyncio.wrap_future(self.team.submit(unquote(graph_id), options))
        except Exception as error:
            ours = our_error(error)
            _logger.warning("a view could not be opened: %s", ours or error, exc_info=ours is None)
            self.set_status(404 if isinstance(ours, NotFoundError) else 500 if ours is None else 400)
            self._page(f"<p>{html.escape(str(ours or DefectError(error)))}</p>")
            return
        self.set_status(302)
        self.set_header("Location", f"../../v/{token}/")

    async def _list(self) -> None:
        graphs = self.team.graphs()
        links = "".join(f'<li><a href="{quote(name)}">{html.escape(name)}</a></li>' for name in graphs)
        self._page(f"<h1>Graphs</h1><ul>{links}</ul>" if links else "<p>No graph is registered.</p>")

    def _page(self, body: str) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write(f"<!doctype html><title>sv-pipeline</title>{body}")
