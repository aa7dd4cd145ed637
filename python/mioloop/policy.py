"""The event loop policy, for the Pythons that have one.

Policies are deprecated from 3.14 on and gone from 3.16 on. The public names warn there, though a program that
asks for mioloop's policy has been told so by `asyncio.set_event_loop_policy` itself; so the names below the
public ones are used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .loop import Loop

if TYPE_CHECKING:
    from asyncio import DefaultEventLoopPolicy as _DefaultPolicy
    from asyncio import set_event_loop_policy
elif sys.version_info >= (3, 14):
    from asyncio.events import _set_event_loop_policy as set_event_loop_policy
    from asyncio.unix_events import _DefaultEventLoopPolicy as _DefaultPolicy
else:
    from asyncio import DefaultEventLoopPolicy as _DefaultPolicy
    from asyncio import set_event_loop_policy

__all__ = ("EventLoopPolicy", "set_event_loop_policy")


class EventLoopPolicy(_DefaultPolicy):
    """asyncio's own policy, making mioloop's loops.

    ``asyncio.set_event_loop_policy(mioloop.EventLoopPolicy())`` is what `mioloop.install` does.
    """

    _loop_factory: Any = Loop
