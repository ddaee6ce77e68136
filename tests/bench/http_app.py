"""The bare application of part 3: Starlette on uvicorn, one statement through an asyncpg pool for each request."""

import contextlib
import socket
import sys
import uuid
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_CONNECTIONS = 8
"""As DF_DB_CONNECTIONS is by default."""

TABLE = """
    create table bare_jobs (
        job_id uuid primary key,
        status text not null default 'queued',
        progress double precision not null default 0,
        params jsonb not null,
        created_at timestamptz not null default now()
    )
"""


async def _create(request: Request) -> Response:
    job_id, params = uuid.uuid4(), msgspec.json.encode(await request.json()).decode()
    await request.app.state.pool.execute("insert into bare_jobs (job_id, params) values ($1, $2)", job_id, params)
    return JSONResponse({"job": {"id": str(job_id), "status": "queued"}}, 202)


async def _get(request: Request) -> Response:
    statement = "select status, params, created_at from bare_jobs where job_id = $1"
    row = await request.app.state.pool.fetchrow(statement, uuid.UUID(request.path_params["job_id"]))
    job = {
        "id": request.path_params["job_id"],
        "status": row["status"],
        "params": msgspec.json.decode(row["params"]),
        "created_at": row["created_at"].isoformat(),
    }
    return JSONResponse({"job": job})


async def _progress(request: Request) -> Response:
    statement = "select progress from bare_jobs where job_id = $1"
    progress = await request.app.state.pool.fetchval(statement, uuid.UUID(request.path_params["job_id"]))
    return JSONResponse({"progress": progress})


def make_app(db_url: str) -> Starlette:
    """The application."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with asyncpg.create_pool(db_url, min_size=_CONNECTIONS, max_size=_CONNECTIONS) as pool:
            app.state.pool = pool
            yield

    routes = [
        Route("/v1/jobs", _create, methods=["POST"]),
        Route("/v1/jobs/{job_id}", _get),
        Route("/v1/jobs/{job_id}/progress", _progress),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def serve(app: Starlette, port: int) -> None:
    """Serve an application with the settings of Dream Forge's server."""
    # As Dream Forge listens: asyncio disables Nagle's algorithm only with an explicit protocol.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    serve(make_app(sys.argv[1]), int(sys.argv[2]))
