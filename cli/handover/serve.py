"""The model in this folder behind HTTP: uvicorn serve:app, and then POST {"rows": [...]} to /predict."""

import json
from typing import Any

from predict import predict, unseen  # predict.py, beside this file
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MOST_BYTES, MOST_ROWS = 32 << 20, 10_000
"""Of a request."""


async def answer(request: Request) -> JSONResponse:
    """{"rows": [...]} -> {"predictions": [...]}, one for each row, with "warnings" of values that no model knows."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MOST_BYTES:
            raise HTTPException(413, f"a request has at most {MOST_BYTES:,} bytes")
    try:
        given = json.loads(content)
        rows = given.get("rows") if isinstance(given, dict) else None
        if not isinstance(rows, list) or not 0 < len(rows) <= MOST_ROWS:
            raise ValueError(f'send {{"rows": [...]}} with 1 to {MOST_ROWS:,} rows')
        answers = {"predictions": await run_in_threadpool(predict, rows)}
        return JSONResponse(answers | ({"warnings": found} if (found := unseen(rows)) else {}))
    except (ValueError, RecursionError) as e:  # also of JSON and of UTF-8
        raise HTTPException(400, str(e)) from None


async def healthy(_: Request) -> JSONResponse:
    """Whether the model is loaded."""
    return JSONResponse({"status": "ok"})


async def refused(_: Request, error: Any) -> JSONResponse:
    """An error in one line."""
    return JSONResponse({"error": " ".join(error.detail.split())}, error.status_code)


app = Starlette(
    routes=[Route("/predict", answer, methods=["POST"]), Route("/health", healthy)],
    exception_handlers={HTTPException: refused},
)
