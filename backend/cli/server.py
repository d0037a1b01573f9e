"""The api process: the application over everything real, served by uvicorn; `python -m backend.cli.server`."""

from __future__ import annotations

from collections.abc import Sequence

import uvicorn

from backend import logs, loops
from backend.adapters import vitals
from backend.adapters.bus import Followers
from backend.adapters.db.engine import connect, sessions_of
from backend.adapters.llm.replay import Recordings
from backend.api.app import create_app
from backend.api.installation import Installation
from backend.engine import doctor, health
from backend.engine.health import Check
from backend.engine.loader import Graphs
from backend.engine.reaper import Reaper
from backend.errors import Unavailable
from backend.operations import readiness
from backend.settings import Settings
from backend.worker.bell import make_bell


def compose(settings: Settings) -> Installation:
    """What the application stands on, over the servers that the settings name."""
    if settings.database_url is None or settings.redis_url is None:
        raise Unavailable("The api needs DATABASE_URL and REDIS_URL; `company up` starts both and the api with them.")
    redis_url = settings.redis_url.get_secret_value()
    engine = connect(settings.database_url.get_secret_value(), pool_size=settings.engine.pool_size)
    sessions, bell = sessions_of(engine), make_bell(settings)
    redis = vitals.client(redis_url)
    graphs, recordings = Graphs(), Recordings(settings.home)

    async def essentials() -> Sequence[Check]:
        return await health.essentials(engine, redis_url, settings.home)

    async def examine() -> Sequence[Check]:
        return await doctor.examine(settings)

    return Installation(
        home=settings.home,
        sessions=sessions,
        bell=bell,
        followers=Followers(redis_url),
        graph_version=graphs.newest,
        graph_shape=graphs.shape,
        faults=lambda config, brief: readiness.faults(
            config, brief, recordings=recordings, roles=graphs.roles(config.graph)
        ),
        health=examine,
        readiness=essentials,
        workers=lambda: vitals.collect(redis),
        background=(Reaper(sessions, bell, every=settings.engine.reaper_seconds).run,),
    )


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; open streams get a moment to end."""
    logs.setup(settings.log_level)
    config = uvicorn.Config(
        create_app(compose(settings)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
    )
    loops.settle_down()
    loops.run(uvicorn.Server(config).serve())


def main() -> None:
    """The entry of `python -m backend.cli.server`."""
    serve(Settings())


if __name__ == "__main__":
    main()
