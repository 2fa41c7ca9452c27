"""The runtime API: what a script in API mode reads and writes while it runs.

An ASGI application over the platform's store, embedded in the controller or started with `cronium api serve`. Heavy
to import (starlette, uvicorn, PyJWT), so nothing outside this package imports it before it is needed.
"""
