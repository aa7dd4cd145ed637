"""Downloads files, several at a time.

    python examples/downloader.py --into folder https://example.org/a https://example.org/b

What is worth a look:

* bounded concurrency: a semaphore around each attempt, so that a file that waits for its next try does not
  hold a place;
* layered time limits: one for each silence of the server, one for each attempt, one for everything;
* retries that wait longer each time, with some chance in it, lest all of them come back at the same moment;
* no half file: data goes to `name.part`, which is renamed when it is whole, and removed however the download
  ends, Ctrl-C included. `asyncio.Runner` cancels the main task on SIGINT, and `finally` does the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp

import mioloop


class Refused(Exception):
    """The server said no, and would say so again."""


@dataclass
class Progress:
    """What the bar shows."""

    files: int
    done: int = 0
    failed: int = 0
    retries: int = 0
    received: int = 0
    stream: int = field(default_factory=sys.stderr.fileno)

    def line(self) -> str:
        width = 30
        filled = width * (self.done + self.failed) // self.files
        bar = "#" * filled + "." * (width - filled)
        return (
            f"[{bar}] {self.done}/{self.files} files, {self.received / 1e6:.1f} MB"
            f", {self.retries} retries, {self.failed} failed"
        )

    async def show(self) -> None:
        """Draws the bar again and again, if somebody is there to see it."""
        while os.isatty(self.stream):
            print(f"\r{self.line()}", end="", file=sys.stderr, flush=True)
            await asyncio.sleep(0.1)


@contextlib.contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` if the block ends well and is gone if it does not."""
    part = target.with_name(target.name + ".part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@dataclass
class Downloader:
    session: aiohttp.ClientSession
    into: Path
    places: asyncio.Semaphore
    attempts: int
    attempt_limit: float  # seconds
    pause: float  # seconds before the second attempt; doubled for each one after
    progress: Progress

    async def attempt(self, url: str, target: Path) -> None:
        before = self.progress.received
        try:
            async with asyncio.timeout(self.attempt_limit), self.session.get(url) as response:
                if 400 <= response.status < 500 and response.status not in (408, 429):
                    raise Refused(f"{response.status} {response.reason}")
                response.raise_for_status()
                with whole_or_nothing(target) as part, part.open("wb") as file:
                    async for chunk in response.content.iter_chunked(256 * 1024):
                        # On a slow disk this would hold up the others: then write in a thread.
                        file.write(chunk)
                        self.progress.received += len(chunk)
        except BaseException:
            self.progress.received = before
            raise

    async def download(self, url: str) -> bool:
        """Whether it worked in the end."""
        name = unquote(urlsplit(url).path).rsplit("/", 1)[-1] or "index"
        failure: Exception | None = None
        for number in range(self.attempts):
            if number:
                self.progress.retries += 1
                await asyncio.sleep(self.pause * 2 ** (number - 1) * random.uniform(0.5, 1.5))
            try:
                async with self.places:
                    await self.attempt(url, self.into / name)
            except (aiohttp.ClientError, TimeoutError) as error:
                failure = error
            except Refused as error:
                failure = error
                break
            else:
                self.progress.done += 1
                return True
        self.progress.failed += 1
        print(f"\n{url}: {failure or type(failure).__name__}", file=sys.stderr)
        return False


async def main(options: argparse.Namespace) -> int:
    options.into.mkdir(parents=True, exist_ok=True)
    urls = list(dict.fromkeys(options.urls))
    progress = Progress(len(urls))
    silence = aiohttp.ClientTimeout(total=None, sock_connect=options.silence, sock_read=options.silence)
    async with aiohttp.ClientSession(timeout=silence) as session:
        downloader = Downloader(
            session,
            options.into,
            asyncio.Semaphore(options.at_once),
            options.attempts,
            options.attempt_limit,
            options.pause,
            progress,
        )
        bar = asyncio.create_task(progress.show())
        try:
            async with asyncio.timeout(options.limit), asyncio.TaskGroup() as group:
                tasks = [group.create_task(downloader.download(url)) for url in urls]
        finally:
            bar.cancel()
            print(f"\r{progress.line()}", file=sys.stderr, flush=True)
    return 0 if all(task.result() for task in tasks) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Download files, several at a time.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--into", type=Path, default=Path(), metavar="FOLDER")
    parser.add_argument("--at-once", type=int, default=8, metavar="N")
    parser.add_argument("--attempts", type=int, default=4, metavar="N")
    parser.add_argument(
        "--pause", type=float, default=0.5, metavar="SECONDS", help="before the second attempt"
    )
    parser.add_argument(
        "--silence", type=float, default=20, metavar="SECONDS", help="the longest of a server"
    )
    parser.add_argument("--attempt-limit", type=float, default=600, metavar="SECONDS")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="for everything")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(mioloop.run(main(arguments())))
    except TimeoutError:
        sys.exit("It took too long.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        # As shells expect it of a program that Ctrl-C has ended.
        sys.exit(128 + signal.SIGINT)
