"""A service with a SuperLink and a running app, for a test to SIGKILL."""

import asyncio
import sys
from pathlib import Path

from flower_parts import scripted_app

from trellis.flower.superlink import SuperLink


async def main() -> None:
    folder = Path(sys.argv[1])
    async with SuperLink(folder=folder) as superlink, scripted_app(superlink, folder):
        print(superlink.pid, flush=True)
        await asyncio.sleep(600)


asyncio.run(main())
