"""Every row, in the order of the report."""

from __future__ import annotations

from . import files, http, micro, network, process, tls
from .row import InProcess, Served

ROWS: tuple[InProcess | Served, ...] = (
    *micro.ROWS,
    *files.ROWS,
    *network.ROWS,
    *tls.ROWS,
    *http.ROWS,
    *process.ROWS,
)
