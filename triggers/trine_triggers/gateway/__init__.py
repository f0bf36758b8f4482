"""The HTTP gateway: routes that follow the live catalogue, on uvicorn.

`routing` finds the function, `decode` and `uploads` make its payload, `app` calls it, `replies`,
`streaming` and `feed` answer, `server` listens. One gateway serves `Http` and its subclasses.
"""
