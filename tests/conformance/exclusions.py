"""What the conformance run leaves out, each with its reason. Nothing is left out anywhere else.

Three lists, from the coarse to the fine: modules about the standard loop's insides, classes that repeat
other classes on another selector, and single tests by name. An entry of the last list that names no test of
the running Python is reported as an error, so that the list cannot outlive its reasons.
"""

import select
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase

PREFIX = "test.test_asyncio."  # every name below goes without it

# Modules that test the standard loops' own classes, with fakes of their private parts.
INSIDES = {
    "test_base_events": "BaseEventLoop's private methods, on mocked selectors",
    "test_selector_events": "the selector loop's transports, built by hand on mocked sockets",
    "test_proactor_events": "the Windows proactor loop",
    "test_unix_events": "the Unix selector loop's transports and child watchers, on mocks",
    "test_windows_events": "the Windows loops",
    "test_windows_utils": "the Windows loops' helpers",
}

# test_events, test_sendfile and test_sock_lowlevel run one mixin once for each selector. Ours has no selector
# to choose, so one class stands for all: the one whose selector a standard loop has by default.
DEFAULT_VARIANT = "EPollEventLoopTests" if hasattr(select, "epoll") else "KqueueEventLoopTests"
SELECTOR_VARIANTS = {
    "SelectEventLoopTests",
    "PollEventLoopTests",
    "EPollEventLoopTests",
    "KqueueEventLoopTests",
} - {DEFAULT_VARIANT}


@dataclass(frozen=True)
class Exclusion:
    """One test left out: `module.Class.test`, where `*` stands for any part of a name."""

    test: str
    reason: str
    first: tuple[int, int] = (3, 11)  # the first and the last Python version that it holds for
    last: tuple[int, int] = (3, 99)
    backported: bool = False  # a bugfix release brought it: earlier ones of the same version do not have it

    def holds(self, version: tuple[int, int]) -> bool:
        return self.first <= version <= self.last


TESTS: tuple[Exclusion, ...] = (
    Exclusion(
        "test_events.*.test_internal_fds",
        "reads BaseSelectorEventLoop's self-pipe; skips itself on any other class of loop",
    ),
    Exclusion(
        "test_events.*.test_timeout_rounding",
        "replaces the private _run_once to count the standard loop's iterations, and reads its _selector",
    ),
    Exclusion(
        "test_sslproto.*.test_create_connection_ssl_failed_certificate_no_cycles",
        "patches the standard library's own SSLProtocol.connection_made, and finds the transport by that",
        first=(3, 13),
        backported=True,
    ),
    Exclusion(
        "test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data_on_slow_socket",
        "reads the selector transport's private _read_ready_cb and puts a fake in the place of its _sock",
        first=(3, 12),
        backported=True,
    ),
)


def applicable(version: tuple[int, int] = sys.version_info[:2]) -> list[Exclusion]:
    return [exclusion for exclusion in TESTS if exclusion.holds(version)]


def match(test: str) -> str | None:
    """The entry that leaves `module.Class.test` out, or None for a test to run."""
    class_name = test.split(".")[-2]
    if class_name in SELECTOR_VARIANTS:
        return class_name
    return next((entry.test for entry in applicable() if fnmatchcase(test, entry.test)), None)
